//! Takes certificates back: a revocation list of each authority that signed one, which travels in the file of authorities.
//!
//! The list of an authority has everything that it ever revoked. It is made anew each time, of the register and of the list before,
//! so that a register that was lost brings nobody back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borealis_spec::{Identity, Role};
use borealis_types::InstanceId;
use pki_types::pem::PemObject;
use pki_types::{CertificateDer, CertificateRevocationListDer};
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams, SerialNumber,
};
use webpki::{BorrowedCertRevocationList, EndEntityCert};

use crate::files::{PUBLIC, write_whole};
use crate::register::{Certificate, Content, Entry, Register, Revocation, Serial};
use crate::{
    Authority, Fleet, FleetError, NOTE, authority_certificate, authority_key, day, file_error, seconds,
};

/// A list is said to count for a day at least, of an authority that ends before, too.
const LIST_VALIDITY_MIN: Duration = Duration::from_secs(24 * 3600);

/// Which certificates are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// All of this part.
    Part(Role),
    /// All of the instance with this number, of whichever volume.
    Instance(InstanceId),
    /// All of the parts on a host: those of `borealis fleet plan` for it, and of nodes that are called so.
    Host(String),
    /// The one with this number.
    Serial(Serial),
    /// The one in this file.
    File(PathBuf),
}

/// A certificate that is revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// Its number.
    pub serial: Serial,
    /// Whose it is; `None` if it was made before certificates were noted.
    pub identity: Option<Identity>,
    /// It was revoked before, too.
    pub was_revoked: bool,
}

/// A certificate, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// What it is.
    pub certificate: Certificate,
    /// The day on which it was revoked, as `2026-11-27`; `None` if it was not.
    pub revoked_day: Option<String>,
    /// Nobody takes the word of its authority any more.
    pub is_of_retired: bool,
}

impl Fleet {
    /// Every certificate that was noted when it was made, in the order of parts and then of time.
    ///
    /// # Errors
    /// When the register cannot be read.
    pub fn certificates(&self) -> Result<Vec<Standing>, FleetError> {
        let content = Register::open(&self.folder)?.read()?;
        let standing = |certificate: &Certificate| Standing {
            revoked_day: content
                .revoked_seconds(certificate.authority, &certificate.serial)
                .map(|revoked| day(UNIX_EPOCH + Duration::from_secs(revoked))),
            is_of_retired: !self.trusts(certificate.authority),
            certificate: certificate.clone(),
        };
        let mut all: Vec<Standing> = content.certificates.iter().map(standing).collect();
        // Stable: of one part, in the order in which they were made.
        all.sort_by(|one, other| one.certificate.identity.cmp(&other.certificate.identity));
        Ok(all)
    }

    /// Takes certificates back, and writes the file of authorities, which then says so. Those that were taken back before stay so.
    ///
    /// # Errors
    /// When the selection means none or is in doubt, or the folder cannot be used.
    pub fn revoke(&self, selection: &Selection, now: SystemTime) -> Result<Vec<Revoked>, FleetError> {
        let mut register = Register::open(&self.folder)?;
        let content = register.read()?;
        let meant = self.select(selection, &content, now)?;
        let mut entries = Vec::new();
        let mut revoked: Vec<Revoked> = Vec::new();
        for (authority, serial, identity) in meant {
            let was_revoked = content.revoked_seconds(authority, &serial).is_some();
            if !was_revoked {
                let revocation =
                    Revocation { authority, serial: serial.clone(), revoked_seconds: seconds(now) };
                entries.push(Entry::Revoked(revocation));
            }
            if !revoked.iter().any(|other| other.serial == serial) {
                revoked.push(Revoked { serial, identity, was_revoked });
            }
        }
        register.append(&entries)?;
        // Of all: a revocation may have been interrupted here.
        self.write_lists(&register.read()?, now)?;
        self.write_bundle()?;
        Ok(revoked)
    }

    fn trusts(&self, number: u32) -> bool {
        self.trusted().any(|authority| authority.number == number)
    }

    /// Authority, number and owner of each certificate that is meant.
    fn select(
        &self,
        selection: &Selection,
        content: &Content,
        now: SystemTime,
    ) -> Result<Vec<(u32, Serial, Option<Identity>)>, FleetError> {
        let part = match selection {
            Selection::File(path) => return self.in_file(path).map(|meant| vec![meant]),
            Selection::Serial(serial) => return Ok(self.with_serial(serial, content)),
            Selection::Host(host) => format!("a part on {host}"),
            Selection::Instance(number) => format!("instance {number}"),
            Selection::Part(role) => Identity { fleet: self.name().clone(), role: *role }.to_string(),
        };
        let is_meant = |certificate: &&Certificate| match selection {
            Selection::Part(role) => certificate.identity.role == *role,
            Selection::Host(host) => certificate.is_for_host(host),
            Selection::Instance(number) => {
                matches!(certificate.identity.role, Role::Instance(_, id) if id == *number)
            }
            Selection::Serial(_) | Selection::File(_) => false,
        };
        let counts = |certificate: &&Certificate| {
            certificate.has_not_expired(now) && self.trusts(certificate.authority)
        };
        let meant: Vec<&Certificate> = content.certificates.iter().filter(is_meant).filter(counts).collect();
        let Some(first) = meant.first() else { return Err(FleetError::NothingToRevoke(part)) };
        if matches!(selection, Selection::Instance(_))
            && let Some(other) = meant.iter().find(|other| other.identity != first.identity)
        {
            return Err(FleetError::Ambiguous {
                part,
                identities: Box::new([first.identity.clone(), other.identity.clone()]),
            });
        }
        let named = |certificate: &&Certificate| {
            (certificate.authority, certificate.serial.clone(), Some(certificate.identity.clone()))
        };
        Ok(meant.iter().map(named).collect())
    }

    /// One that was not noted is refused of every authority: nobody knows which signed it, and numbers are not given twice.
    fn with_serial(&self, serial: &Serial, content: &Content) -> Vec<(u32, Serial, Option<Identity>)> {
        let noted = content.certificates.iter().find(|certificate| certificate.serial == *serial);
        match noted {
            Some(found) => vec![(found.authority, serial.clone(), Some(found.identity.clone()))],
            None => self.trusted().map(|authority| (authority.number, serial.clone(), None)).collect(),
        }
    }

    /// The certificate in a file, which an authority of this fleet must have signed.
    fn in_file(&self, path: &Path) -> Result<(u32, Serial, Option<Identity>), FleetError> {
        let damaged = |reason: String| FleetError::Damaged { path: path.to_owned(), reason };
        let text = fs::read(path).map_err(file_error(path))?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let parsed = EndEntityCert::try_from(&certificate).map_err(|error| damaged(error.to_string()))?;
        let identity = parsed.valid_uri_names().find_map(|name| name.parse::<Identity>().ok());
        for authority in self.trusted() {
            let path = authority_certificate(&self.folder, authority.number);
            let text = fs::read(&path).map_err(file_error(&path))?;
            let damaged = |reason: String| FleetError::Damaged { path: path.clone(), reason };
            let own = CertificateDer::from_pem_slice(&text).map_err(|error| damaged(error.to_string()))?;
            let own = EndEntityCert::try_from(&own).map_err(|error| damaged(error.to_string()))?;
            if own.subject() == parsed.issuer() {
                return Ok((authority.number, Serial::of(parsed.serial()), identity));
            }
        }
        Err(FleetError::Authority(format!(
            "no authority that is trusted in {} has signed the certificate in {}; nothing was changed",
            self.folder.display(),
            path.display()
        )))
    }

    /// Writes the list of each authority that has revoked something.
    fn write_lists(&self, content: &Content, now: SystemTime) -> Result<(), FleetError> {
        for &authority in self.trusted() {
            let mut revoked = self.listed(authority)?;
            for revocation in content.revocations.iter().filter(|one| one.authority == authority.number) {
                revoked.entry(revocation.serial.clone()).or_insert(revocation.revoked_seconds);
            }
            if !revoked.is_empty() {
                self.write_list(authority, &revoked, now)?;
            }
        }
        Ok(())
    }

    /// What the list of an authority says now, with the time of each revocation in seconds since 1970.
    fn listed(&self, authority: Authority) -> Result<BTreeMap<Serial, u64>, FleetError> {
        let path = revocation_list(&self.folder, authority.number);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            other => other.map_err(file_error(&path))?,
        };
        let damaged = |reason: String| FleetError::Damaged {
            path: path.clone(),
            reason: format!(
                "{reason}. Put a copy of it back, or remove it: it is then made anew of certificates.jsonl"
            ),
        };
        let list = CertificateRevocationListDer::from_pem_slice(&text)
            .map_err(|error| damaged(error.to_string()))?;
        let list = BorrowedCertRevocationList::from_der(&list).map_err(|error| damaged(error.to_string()))?;
        let mut listed = BTreeMap::new();
        for entry in &list {
            let entry = entry.map_err(|error| damaged(error.to_string()))?;
            listed.insert(Serial::of(entry.serial_number), entry.revocation_date.as_secs());
        }
        Ok(listed)
    }

    fn write_list(
        &self,
        authority: Authority,
        revoked: &BTreeMap<Serial, u64>,
        now: SystemTime,
    ) -> Result<(), FleetError> {
        let moment = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let entry = |(serial, &revoked_seconds): (&Serial, &u64)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.bytes()),
            revocation_time: moment(revoked_seconds),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let until = authority.valid_until().max(now + LIST_VALIDITY_MIN);
        let params = CertificateRevocationListParams {
            this_update: moment(seconds(now)),
            next_update: moment(seconds(until)),
            // Rises with each list that says more.
            crl_number: SerialNumber::from(revoked.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let key_path = authority_key(&self.folder, authority.number);
        let key = fs::read_to_string(&key_path).map_err(file_error(&key_path))?;
        let issuer = authority.issuer(self.name(), KeyPair::from_pem(&key)?);
        let list = params.signed_by(&issuer)?.pem()?;
        let note = format!(
            "{NOTE}borealis://{}/ authority {}, revoked: {}\n",
            self.name(),
            authority.number,
            revoked.len()
        );
        let path = revocation_list(&self.folder, authority.number);
        write_whole(&path, PUBLIC, (note + &list).as_bytes()).map_err(file_error(&path))
    }
}

/// Where the list of what an authority has revoked is.
pub(crate) fn revocation_list(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("authority-{number}.crl"))
}

#[cfg(test)]
mod tests;
