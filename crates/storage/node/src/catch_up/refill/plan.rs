//! Which pages of a group to ask of which peer next. Pure: answers in, questions out.
//!
//! Pages are settled in key order, range by range. First two peers are asked for the checksums of a range, and what both
//! say is what counts: one answer could be of a peer that is wrong itself. Then the pages that are not here already are
//! asked of all peers at once, and each has to have its checksum. While the pages of one range are asked for, the next
//! range is. Two other peers are asked for each range, so that all share the work.
//!
//! A page about which two peers do not agree is a range of its own: all are asked for it, and two must give the same
//! bytes.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{NodeId, PAGE_SIZE, PageBytes, PageKey};
use borealis_wire::PageChecksum;

/// Pages whose checksums are asked for at a time: little enough that nobody waits long behind it.
pub(super) const RANGE_PAGES: u32 = 256;
/// Pages that are asked of one peer at a time. With [`RANGE_PAGES`] it bounds what is on its way: 2 MiB.
const FETCH_PAGES: usize = 64;

/// What to ask at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Checksums of the next range, of these two, and pages.
    Ask { survey: Option<Survey>, pages: BTreeMap<NodeId, Vec<PageKey>> },
    /// This page, of all of these: two of their answers must be the same.
    Settle { key: PageKey, peers: Vec<NodeId> },
    /// All pages are settled.
    Done,
}

/// A question for checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Survey {
    pub(super) peers: [NodeId; 2],
    /// Of the pages after this one.
    pub(super) after: Option<PageKey>,
}

/// Why there is nothing to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Stuck {
    #[error("fewer than two peers can be asked")]
    TooFewPeers,
    #[error("no two peers give the same copy of page {0}")]
    Disputed(PageKey),
}

/// A range of pages that exist.
#[derive(Debug)]
pub(super) struct Range {
    /// Its last page; `None` if it goes to the end.
    pub(super) through: Option<PageKey>,
    pages: BTreeMap<PageKey, Page>,
}

#[derive(Debug)]
enum Page {
    /// It is here already.
    Here,
    Wanted {
        checksum: u32,
        /// Whoever gave another one, or none.
        tried: BTreeSet<NodeId>,
    },
    Brought(Box<PageBytes>),
}

impl Range {
    /// What the store takes: each page with its bytes, unless it is here.
    pub(super) fn into_pages(self) -> Vec<(PageKey, Option<Box<PageBytes>>)> {
        let bytes = |page| match page {
            Page::Brought(bytes) => Some(bytes),
            Page::Here | Page::Wanted { .. } => None,
        };
        self.pages.into_iter().map(|(key, page)| (key, bytes(page))).collect()
    }

    fn is_complete(&self) -> bool {
        !self.pages.values().any(|page| matches!(page, Page::Wanted { .. }))
    }
}

/// A page that two peers do not say the same of.
#[derive(Clone, Copy, Debug)]
struct Dispute {
    key: PageKey,
    /// What each said its checksum is, if it has one.
    claims: [(NodeId, Option<u32>); 2],
}

/// The questions that are left.
#[derive(Debug)]
pub(super) struct Plan {
    /// Who can be asked.
    peers: Vec<NodeId>,
    /// Whose turn it is to be asked for checksums.
    turn: usize,
    /// Up to here ranges are known.
    surveyed: Option<PageKey>,
    has_ended: bool,
    disputed: Option<Dispute>,
    current: Option<Range>,
    upcoming: Option<Range>,
}

impl Plan {
    /// For the pages after `after`, from these peers.
    pub(super) fn new(peers: Vec<NodeId>, after: Option<PageKey>) -> Plan {
        Plan {
            peers,
            turn: 0,
            surveyed: after,
            has_ended: false,
            disputed: None,
            current: None,
            upcoming: None,
        }
    }

    /// A peer that cannot be asked any more.
    pub(super) fn lose(&mut self, peer: NodeId) {
        self.peers.retain(|known| *known != peer);
    }

    /// The peers that can be asked.
    pub(super) fn peers(&self) -> &[NodeId] {
        &self.peers
    }

    /// What to ask next.
    ///
    /// # Errors
    /// When there is nobody to ask.
    pub(super) fn step(&mut self) -> Result<Step, Stuck> {
        if self.peers.len() < 2 {
            return Err(Stuck::TooFewPeers);
        }
        let pages = self.pages_to_ask()?;
        if let Some(Dispute { key, .. }) = self.disputed
            && self.current.is_none()
        {
            return Ok(Step::Settle { key, peers: self.peers.clone() });
        }
        let surveys = !self.has_ended && self.disputed.is_none() && self.upcoming.is_none();
        if !surveys && pages.is_empty() && self.current.is_none() {
            return Ok(Step::Done);
        }
        let survey = surveys.then(|| {
            let one = self.peers[self.turn % self.peers.len()];
            let other = self.peers[(self.turn + 1) % self.peers.len()];
            self.turn += 2;
            Survey { peers: [one, other], after: self.surveyed }
        });
        Ok(Step::Ask { survey, pages })
    }

    /// The pages of the current range that are asked for next, by whom.
    fn pages_to_ask(&self) -> Result<BTreeMap<NodeId, Vec<PageKey>>, Stuck> {
        let mut asked: BTreeMap<NodeId, Vec<PageKey>> = BTreeMap::new();
        let Some(range) = &self.current else { return Ok(asked) };
        let mut next = self.turn;
        for (key, page) in &range.pages {
            let Page::Wanted { tried, .. } = page else { continue };
            let order = (0..self.peers.len()).map(|place| self.peers[(next + place) % self.peers.len()]);
            let peer = order.into_iter().find(|peer| !tried.contains(peer)).ok_or(Stuck::Disputed(*key))?;
            let keys = asked.entry(peer).or_default();
            if keys.len() < FETCH_PAGES {
                keys.push(*key);
            }
            next += 1;
        }
        Ok(asked)
    }

    /// Takes two peers' answers to a survey. Returns the pages of the range with their checksums, of which the caller says
    /// which are here ([`Plan::note_here`]).
    pub(super) fn surveyed(
        &mut self,
        peers: [NodeId; 2],
        answers: [&[PageChecksum]; 2],
    ) -> Vec<(PageKey, u32)> {
        let Agreed { through, pages, disputed } = agree(answers, RANGE_PAGES as usize);
        let agreed = pages.iter().map(|(key, checksum)| (*key, *checksum)).collect();
        let wanted = |checksum| Page::Wanted { checksum, tried: BTreeSet::new() };
        let pages: BTreeMap<PageKey, Page> =
            pages.into_iter().map(|(key, checksum)| (key, wanted(checksum))).collect();
        let claim = |key, at: usize| {
            let said = answers[at].iter().find(|sum| sum.key == key);
            (peers[at], said.and_then(|sum| sum.checksum))
        };
        self.disputed = disputed.map(|key| Dispute { key, claims: [claim(key, 0), claim(key, 1)] });
        self.has_ended = through.is_none() && disputed.is_none();
        // Before a disputed page nothing is known to be missing between it and the last one that is agreed.
        let through = through.or(if disputed.is_some() { pages.keys().next_back().copied() } else { None });
        if self.has_ended || through.is_some() {
            self.surveyed = through.or(self.surveyed);
            self.add(Range { through, pages });
        }
        agreed
    }

    fn add(&mut self, range: Range) {
        match self.current {
            None => self.current = Some(range),
            Some(_) => self.upcoming = Some(range),
        }
    }

    /// A page of a range is here already.
    pub(super) fn note_here(&mut self, key: &PageKey) {
        for range in self.current.iter_mut().chain(&mut self.upcoming) {
            if let Some(page) = range.pages.get_mut(key) {
                *page = Page::Here;
            }
        }
    }

    /// Takes a peer's answer for a page; returns whether it is the page that was wanted.
    pub(super) fn fetched(&mut self, peer: NodeId, key: &PageKey, answer: Option<Vec<u8>>) -> bool {
        let page = self.current.as_mut().and_then(|range| range.pages.get_mut(key));
        let Some(page @ Page::Wanted { .. }) = page else { return false };
        let Page::Wanted { checksum, tried } = page else { return false };
        let bytes: Option<Box<PageBytes>> = answer.and_then(|bytes| bytes.into_boxed_slice().try_into().ok());
        match bytes.filter(|bytes| crc32c::crc32c(&bytes[..]) == *checksum) {
            Some(bytes) => {
                *page = Page::Brought(bytes);
                true
            }
            None => {
                tried.insert(peer);
                false
            }
        }
    }

    /// Takes all answers for a disputed page. Whoever said something else of it is not asked any more: a peer could go on
    /// for ever naming pages that do not exist.
    ///
    /// # Errors
    /// When no two are the same.
    pub(super) fn settled(&mut self, key: PageKey, answers: &[Option<Vec<u8>>]) -> Result<(), Stuck> {
        let is_confirmed = |at: &usize| answers[at + 1..].contains(&answers[*at]);
        let at = (0..answers.len()).find(is_confirmed).ok_or(Stuck::Disputed(key))?;
        let bytes: Option<Box<PageBytes>> = match &answers[at] {
            None => None,
            Some(bytes) if bytes.len() != PAGE_SIZE => return Err(Stuck::Disputed(key)),
            Some(bytes) => bytes.clone().into_boxed_slice().try_into().ok(),
        };
        let checksum = bytes.as_ref().map(|bytes| crc32c::crc32c(&bytes[..]));
        let claims = self.disputed.take().map(|dispute| dispute.claims);
        for (peer, _) in claims.into_iter().flatten().filter(|(_, claim)| *claim != checksum) {
            self.lose(peer);
        }
        let pages = bytes.map(|bytes| (key, Page::Brought(bytes))).into_iter().collect();
        self.surveyed = Some(key);
        self.add(Range { through: Some(key), pages });
        Ok(())
    }

    /// The range that is complete next.
    pub(super) fn take_complete(&mut self) -> Option<Range> {
        let complete = self.current.take_if(|range| range.is_complete())?;
        self.current = self.upcoming.take();
        Some(complete)
    }
}

/// What two peers agree on.
struct Agreed {
    /// Up to this page; `None` to the end, or up to before `disputed`.
    through: Option<PageKey>,
    pages: Vec<(PageKey, u32)>,
    /// The first page that they do not agree on.
    disputed: Option<PageKey>,
}

/// Compares two lists of checksums in key order that begin at the same place. One that has fewer than `limit` ends.
fn agree(answers: [&[PageChecksum]; 2], limit: usize) -> Agreed {
    let bound = answers
        .iter()
        .filter(|list| list.len() >= limit)
        .filter_map(|list| list.last())
        .map(|last| last.key)
        .min();
    let covered =
        |list: &[PageChecksum]| list.partition_point(|sum| bound.is_none_or(|bound| sum.key <= bound));
    let [one, other] = answers.map(|list| &list[..covered(list)]);
    let ascends = |list: &[PageChecksum]| list.windows(2).all(|pair| pair[0].key < pair[1].key);
    let same =
        one.iter().zip(other).take_while(|(one, other)| one == other && one.checksum.is_some()).count();
    let pages: Vec<(PageKey, u32)> =
        one[..same].iter().filter_map(|sum| Some((sum.key, sum.checksum?))).collect();
    let disputed = [one.get(same), other.get(same)].into_iter().flatten().map(|sum| sum.key).min();
    match disputed {
        None if ascends(one) => Agreed { through: bound, pages, disputed },
        // A list in no order says nothing; its first page is asked of all.
        None => Agreed { through: None, pages: Vec::new(), disputed: one.iter().map(|sum| sum.key).min() },
        Some(_) => Agreed { through: None, pages, disputed },
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::SlruKind;
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn key(page: u32) -> PageKey {
        PageKey::Slru { kind: SlruKind::Transactions, page }
    }

    fn bytes(page: u32, version: u8) -> Vec<u8> {
        let mut bytes = vec![version; PAGE_SIZE];
        bytes[..4].copy_from_slice(&page.to_le_bytes());
        bytes
    }

    fn sum(page: u32, version: u8) -> PageChecksum {
        PageChecksum { key: key(page), checksum: Some(crc32c::crc32c(&bytes(page, version))) }
    }

    /// What a peer has: the version of each page.
    type Peer = BTreeMap<u32, u8>;

    fn answer(peer: &Peer, after: Option<PageKey>) -> Vec<PageChecksum> {
        let listed = peer.iter().map(|(page, version)| sum(*page, *version));
        listed.filter(|sum| after.is_none_or(|after| sum.key > after)).take(RANGE_PAGES as usize).collect()
    }

    /// Carries a plan out; returns what the pages are in the end and how many were asked of each peer.
    fn carry_out(
        plan: &mut Plan,
        peers: &BTreeMap<NodeId, Peer>,
        here: &mut Peer,
    ) -> Result<BTreeMap<NodeId, usize>, Stuck> {
        let mut asked: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut through: Option<PageKey> = None;
        loop {
            match plan.step()? {
                Step::Done => return Ok(asked),
                Step::Settle { key, peers: of } => {
                    let PageKey::Slru { page, .. } = key else { unreachable!() };
                    let answers: Vec<_> =
                        of.iter().map(|peer| peers[peer].get(&page).map(|v| bytes(page, *v))).collect();
                    plan.settled(key, &answers)?;
                }
                Step::Ask { survey, pages } => {
                    for (peer, keys) in pages {
                        assert!(keys.len() <= FETCH_PAGES);
                        *asked.entry(peer).or_default() += keys.len();
                        for wanted in keys {
                            let PageKey::Slru { page, .. } = wanted else { unreachable!() };
                            let answer = peers[&peer].get(&page).map(|version| bytes(page, *version));
                            plan.fetched(peer, &wanted, answer);
                        }
                    }
                    if let Some(Survey { peers: [one, other], after }) = survey {
                        let answers = [answer(&peers[&one], after), answer(&peers[&other], after)];
                        for (agreed, checksum) in plan.surveyed([one, other], [&answers[0], &answers[1]]) {
                            let PageKey::Slru { page, .. } = agreed else { unreachable!() };
                            let own = here.get(&page).map(|version| crc32c::crc32c(&bytes(page, *version)));
                            if own == Some(checksum) {
                                plan.note_here(&agreed);
                            }
                        }
                    }
                }
            }
            while let Some(range) = plan.take_complete() {
                let last = range.through;
                let pages: BTreeMap<PageKey, _> = range.into_pages().into_iter().collect();
                here.retain(|page, _| {
                    let key = key(*page);
                    let of_range =
                        through.is_none_or(|before| key > before) && last.is_none_or(|last| key <= last);
                    !of_range || pages.contains_key(&key)
                });
                for (key, page) in pages {
                    assert!(
                        through.is_none_or(|through| key > through) && last.is_none_or(|last| key <= last)
                    );
                    let PageKey::Slru { page: number, .. } = key else { unreachable!() };
                    if let Some(page) = page {
                        here.insert(number, page[PAGE_SIZE - 1]);
                    }
                }
                through = last.or(through);
            }
        }
    }

    fn versions(pages: impl IntoIterator<Item = u32>, version: u8) -> Peer {
        pages.into_iter().map(|page| (page, version)).collect()
    }

    #[test]
    fn all_peers_share_the_work_and_what_is_here_is_not_asked_for() {
        let all = versions(0..2000, 7);
        let peers: BTreeMap<NodeId, Peer> = [A, B, C].map(|peer| (peer, all.clone())).into();
        let mut here = versions(500..1000, 7);
        here.extend(versions(1990..2500, 3));
        let mut plan = Plan::new(vec![A, B, C], None);
        let asked = carry_out(&mut plan, &peers, &mut here).expect("all agree");
        assert_eq!(here, all, "and what does not exist is gone");
        assert_eq!(asked.values().sum::<usize>(), 1500);
        assert!(asked.values().all(|count| (400..=600).contains(count)), "{asked:?}");
    }

    #[test]
    fn one_peers_word_changes_nothing() {
        let all = versions(0..700, 7);
        let mut liar = all.clone();
        liar.insert(3, 9);
        liar.insert(9000, 1);
        liar.remove(&650);
        for order in [vec![A, B, C], vec![C, A, B], vec![B, C, A]] {
            let peers: BTreeMap<NodeId, Peer> =
                [(A, all.clone()), (B, liar.clone()), (C, all.clone())].into();
            let mut here = Peer::new();
            carry_out(&mut Plan::new(order, None), &peers, &mut here).expect("two agree");
            assert_eq!(here, all);
        }
    }

    #[test]
    fn two_that_differ_are_not_enough_and_one_is_nobody() {
        let peers: BTreeMap<NodeId, Peer> = [(A, versions(0..10, 1)), (B, versions(0..10, 2))].into();
        let mut plan = Plan::new(vec![A, B], None);
        let stuck = carry_out(&mut plan, &peers, &mut Peer::new());
        assert_eq!(stuck, Err(Stuck::Disputed(key(0))));
        plan.lose(B);
        assert_eq!(plan.step(), Err(Stuck::TooFewPeers));
        assert_eq!(plan.peers(), [A]);
    }

    #[test]
    fn a_page_that_does_not_have_its_checksum_is_asked_of_another() {
        let mut plan = Plan::new(vec![A, B], None);
        let list = [sum(1, 5)];
        assert!(matches!(plan.step(), Ok(Step::Ask { survey: Some(_), .. })));
        plan.surveyed([A, B], [&list, &list]);
        let next = |plan: &mut Plan| match plan.step() {
            Ok(Step::Ask { pages, .. }) => pages.into_keys().next().expect("it is wanted"),
            other => panic!("{other:?}"),
        };
        let first = next(&mut plan);
        assert!(!plan.fetched(first, &key(1), Some(bytes(1, 6))) && plan.take_complete().is_none());
        let second = next(&mut plan);
        assert_ne!(first, second);
        assert!(!plan.fetched(second, &key(1), None));
        assert_eq!(plan.step(), Err(Stuck::Disputed(key(1))));
    }

    proptest! {
        #[test]
        fn whatever_is_here_and_one_of_three_says_it_becomes_what_the_others_have(
            all in prop::collection::btree_map(0u32..900, 0u8..3, 0..700),
            liar in prop::collection::btree_map(0u32..900, 0u8..3, 0..700),
            here in prop::collection::btree_map(0u32..900, 0u8..3, 0..700),
            place in 0usize..3,
        ) {
            let mut order = [A, B, C];
            order.rotate_left(place);
            let peers: BTreeMap<NodeId, Peer> =
                [(A, all.clone()), (B, liar), (C, all.clone())].into();
            let mut here = here;
            carry_out(&mut Plan::new(order.to_vec(), None), &peers, &mut here).expect("two agree");
            prop_assert_eq!(here, all);
        }
    }
}
