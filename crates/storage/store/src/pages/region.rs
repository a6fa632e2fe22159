//! Regions: the room for extents in the page files, in sizes.
//!
//! An extent takes the smallest region that holds its pages, and moves to a larger one when it grows. Most relations
//! have a page or two: with regions of one size, each of them would take what a hundred pages need, and far apart
//! from the next. A file system that reserves room around every write, as ext4 does, then runs out of space that
//! nobody uses.

use serde::{Deserialize, Serialize};

/// Pages in an extent.
pub(crate) const PAGES_PER_EXTENT: u32 = 128;

/// A size of regions: a power of two of pages, up to a whole extent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub(crate) struct RegionClass {
    exponent: u8,
}

impl RegionClass {
    /// Number of classes: 1, 2, 4, … 128 pages.
    pub(crate) const COUNT: usize = PAGES_PER_EXTENT.ilog2() as usize + 1;

    /// The smallest regions with room for this many pages, at most [`PAGES_PER_EXTENT`].
    pub(crate) fn holding(pages: usize) -> RegionClass {
        let pages = pages.clamp(1, PAGES_PER_EXTENT as usize);
        RegionClass { exponent: pages.next_power_of_two().ilog2() as u8 }
    }

    /// How many pages such a region has room for.
    pub(crate) fn pages(self) -> u32 {
        1 << self.exponent
    }

    #[cfg(test)]
    fn all() -> impl Iterator<Item = RegionClass> {
        (0..RegionClass::COUNT as u8).map(|exponent| RegionClass { exponent })
    }
}

impl From<RegionClass> for u8 {
    fn from(class: RegionClass) -> u8 {
        class.exponent
    }
}

impl TryFrom<u8> for RegionClass {
    type Error = &'static str;

    fn try_from(exponent: u8) -> Result<RegionClass, &'static str> {
        if usize::from(exponent) < RegionClass::COUNT {
            Ok(RegionClass { exponent })
        } else {
            Err("there are no regions of that size")
        }
    }
}

/// A region: its class, and its number among the regions of that class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Region {
    pub class: RegionClass,
    pub number: u32,
}

/// Which regions of one class are free.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
struct ClassRegions {
    /// The lowest that was never used.
    next: u32,
    /// Free ones below `next`, highest first.
    free: Vec<u32>,
}

/// Which regions of a segment's page files are free.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Regions([ClassRegions; RegionClass::COUNT]);

impl Regions {
    /// Takes the lowest free region of a class, which keeps the files few and short.
    pub(crate) fn take(&mut self, class: RegionClass) -> Region {
        let regions = &mut self.0[usize::from(class.exponent)];
        let number = regions.free.pop().unwrap_or_else(|| {
            regions.next += 1;
            regions.next - 1
        });
        Region { class, number }
    }

    /// Notes that these regions are free.
    pub(crate) fn release(&mut self, freed: &[Region]) {
        for region in freed {
            self.0[usize::from(region.class.exponent)].free.push(region.number);
        }
        for regions in &mut self.0 {
            regions.free.sort_unstable_by(|one, other| other.cmp(one));
        }
    }

    /// Whether no extent is in this region.
    pub(crate) fn is_free(&self, region: Region) -> bool {
        let regions = &self.0[usize::from(region.class.exponent)];
        let listed = || regions.free.binary_search_by(|free| region.number.cmp(free)).is_ok();
        region.number >= regions.next || listed()
    }

    /// Every region below the highest that was ever used, with whether it is free.
    #[cfg(test)]
    pub(crate) fn all(&self) -> impl Iterator<Item = (Region, bool)> {
        RegionClass::all().flat_map(|class| {
            let next = self.0[usize::from(class.exponent)].next;
            (0..next).map(move |number| Region { class, number }).map(|region| (region, self.is_free(region)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_the_smallest_that_holds_the_pages() {
        for pages in 1..=PAGES_PER_EXTENT as usize {
            let class = RegionClass::holding(pages);
            assert!(class.pages() as usize >= pages && (class.pages() as usize) < 2 * pages, "{pages}");
        }
        assert_eq!(RegionClass::all().last(), Some(RegionClass::holding(PAGES_PER_EXTENT as usize)));
    }

    #[test]
    fn the_lowest_free_region_is_taken_first() {
        let class = RegionClass::holding(3);
        let mut regions = Regions::default();
        let taken: Vec<Region> = (0..4).map(|_| regions.take(class)).collect();
        assert_eq!(taken.iter().map(|region| region.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
        regions.release(&[taken[1], taken[3], taken[0]]);
        assert!(regions.is_free(taken[3]) && !regions.is_free(taken[2]));
        assert_eq!(regions.take(class), taken[0]);
        assert_eq!(regions.take(RegionClass::holding(1)).number, 0, "each class has its own");
    }

    #[test]
    fn a_class_that_does_not_exist_does_not_decode() {
        let region = Region { class: RegionClass::holding(128), number: 7 };
        let mut bytes = postcard::to_stdvec(&region).unwrap();
        assert_eq!(postcard::from_bytes::<Region>(&bytes).unwrap(), region);
        bytes[0] += 1;
        assert!(postcard::from_bytes::<Region>(&bytes).is_err());
    }
}
