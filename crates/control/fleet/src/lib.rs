//! The certificates of a fleet: its own authority, and what that signs for each part.
//!
//! ```text
//! FOLDER/fleet.json           the fleet's name, and its authorities by number
//! FOLDER/authority-1.pem      a certificate authority, and
//! FOLDER/authority-1.key      its key: whoever has it can be any part of the fleet
//! FOLDER/authority-1.crl      what it signed and has taken back; not there before the first such
//! FOLDER/certificates.jsonl   what was signed, and what was taken back
//! FOLDER/authorities.pem      those that are trusted: one, or two while the fleet changes it; each with its list of what it
//!                             has taken back, so that both come to a host at one time
//!
//! OUT/authorities.pem         what a part is given: whom to trust,
//! OUT/certificate.pem         who it is (`borealis_spec::identity`), and on which hosts,
//! OUT/key.pem                 and its key
//! ```
//!
//! A new authority is trusted beside the old one ([`Fleet::rotate`]): first every part gets the new `authorities.pem`, then
//! a new certificate, and then the old authority is dropped ([`Fleet::retire`]). One certificate alone is taken back by
//! [`Fleet::revoke`].
//!
//! Invariant: no authority's key is ever overwritten or removed, and what is revoked stays so.

mod files;
pub mod hosts;
pub mod inventory;
mod register;
mod revoke;

pub use register::{Certificate, ParseSerialError, Serial};
pub use revoke::{Revoked, Selection, Standing};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borealis_spec::{FleetName, Identity, Role, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};

use files::{PUBLIC, SECRET, private_folder, write_whole};
use register::{Entry, Register};
use revoke::revocation_list;

/// The version of `fleet.json` that this build writes and reads.
const FORMAT: u32 = 1;
const RECORD_NAME: &str = "fleet.json";
const AUTHORITIES_NAME: &str = "authorities.pem";
/// Certificates are valid from a little before they are made: clocks of hosts differ.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(3600);
/// What the first line of a certificate's file says before the identity; text outside of PEM's marks is ignored.
const NOTE: &str = "# ";

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The folder is some fleet's already.
    #[error(
        "{0} has the authority of a fleet already; nothing was changed. `borealis fleet rotate` makes a new one beside it"
    )]
    Exists(PathBuf),
    /// There is no fleet.
    #[error("there is no fleet in {0}; make one with `borealis fleet init`")]
    Missing(PathBuf),
    /// The fleet's file is not what it should be.
    #[error("{path} cannot be read: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder has the certificate of another part.
    #[error(
        "{folder} has the certificate of {found}; nothing was changed. Choose another --out for {wanted}"
    )]
    OtherPart {
        /// Where the certificate was to be put.
        folder: PathBuf,
        /// Whose is there.
        found: String,
        /// Whose was to be made.
        wanted: Identity,
    },
    /// A node without a name or address.
    #[error("a node is called by its host; name at least one (--host)")]
    NoHost,
    /// Something that a host cannot be called.
    #[error("`{0}` is no name or address of a host")]
    Host(String),
    /// There is no such authority, or no other.
    #[error("{0}")]
    Authority(String),
    /// No certificate of it is known that anybody would take.
    #[error(
        "no certificate of {0} is noted in certificates.jsonl that is valid now; nothing was changed. `borealis fleet list` shows \
         what is noted. One that was made before certificates were noted is revoked by its file (--certificate) or number \
         (--serial), or with all others of its authority (`borealis fleet rotate`, `retire`)"
    )]
    NothingToRevoke(String),
    /// Several volumes have an instance with this number.
    #[error("{part} may be {} or {}; say which with --volume. Nothing was changed", .identities[0], .identities[1])]
    Ambiguous {
        /// What was meant.
        part: String,
        /// Two that it could be.
        identities: Box<[Identity; 2]>,
    },
    /// The library refused.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// The beginning.
    pub since: SystemTime,
    /// And the end.
    pub until: SystemTime,
}

impl Validity {
    /// From now on, for so many days.
    #[must_use]
    pub fn days(days: u32) -> Validity {
        let now = SystemTime::now();
        Validity {
            since: now - CLOCK_DIFFERENCE,
            until: now + Duration::from_secs(u64::from(days) * 24 * 3600),
        }
    }
}

/// An authority of a fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Its number, from 1; the highest one signs.
    pub number: u32,
    /// Until when it is valid, in seconds since 1970.
    pub valid_until_seconds: u64,
    /// It is trusted no more.
    #[serde(default)]
    pub is_retired: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    name: FleetName,
    authorities: Vec<Authority>,
}

/// A fleet's authority, with its keys.
#[derive(Debug)]
pub struct Fleet {
    folder: PathBuf,
    record: Record,
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> FleetError {
    let path = path.to_owned();
    move |source| FleetError::File { path, source }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The day, as `2026-11-27`.
#[must_use]
pub fn day(time: SystemTime) -> String {
    let date = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds(time));
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

impl Authority {
    fn issuer(self, name: &FleetName, key: KeyPair) -> Issuer<'static, KeyPair> {
        Issuer::new(self.params(name), key)
    }

    /// What the authority's certificate says, apart from its key: the same each time, for it is the issuer's name.
    fn params(self, name: &FleetName) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("borealis {name} authority {}", self.number));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn valid_until(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.valid_until_seconds)
    }

    /// The last day it is valid, as `2036-11-27`.
    #[must_use]
    pub fn last_day(self) -> String {
        day(self.valid_until())
    }
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(seconds(validity.since));
    params.not_after = epoch + Duration::from_secs(seconds(validity.until));
}

impl Fleet {
    /// Makes a new fleet's authority in `folder`.
    ///
    /// # Errors
    /// When there is one already, or the folder cannot be written.
    pub fn init(folder: &Path, name: FleetName, validity: Validity) -> Result<Fleet, FleetError> {
        if fs::symlink_metadata(folder.join(RECORD_NAME)).is_ok() || authority_key(folder, 1).exists() {
            return Err(FleetError::Exists(folder.to_owned()));
        }
        private_folder(folder).map_err(file_error(folder))?;
        let record = Record { format: FORMAT, name, authorities: Vec::new() };
        let mut fleet = Fleet { folder: folder.to_owned(), record };
        fleet.add_authority(validity)?;
        Ok(fleet)
    }

    /// Opens the fleet in `folder`.
    ///
    /// # Errors
    /// When there is none, or its file cannot be read.
    pub fn open(folder: &Path) -> Result<Fleet, FleetError> {
        let path = folder.join(RECORD_NAME);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FleetError::Missing(folder.to_owned()));
            }
            other => other.map_err(file_error(&path))?,
        };
        let damaged = |reason: String| FleetError::Damaged { path: path.clone(), reason };
        let record: Record = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if record.format != FORMAT {
            return Err(damaged(format!("it has format {}, this Borealis reads {FORMAT}", record.format)));
        }
        if record.authorities.last().is_none_or(|newest| newest.is_retired) {
            return Err(damaged("it has no authority that signs".to_owned()));
        }
        Ok(Fleet { folder: folder.to_owned(), record })
    }

    /// The fleet's name.
    #[must_use]
    pub fn name(&self) -> &FleetName {
        &self.record.name
    }

    /// Its authorities, in the order of their numbers.
    #[must_use]
    pub fn authorities(&self) -> &[Authority] {
        &self.record.authorities
    }

    /// The file of those that are trusted.
    #[must_use]
    pub fn authorities_file(&self) -> PathBuf {
        self.folder.join(AUTHORITIES_NAME)
    }

    /// Makes a new authority, which signs from now on, and is trusted beside those before it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn rotate(&mut self, validity: Validity) -> Result<Authority, FleetError> {
        self.add_authority(validity)
    }

    /// Trusts an authority no more. Its files stay.
    ///
    /// # Errors
    /// When there is no such authority, or it is the one that signs.
    pub fn retire(&mut self, number: u32) -> Result<(), FleetError> {
        let newest = self.newest().number;
        let found = self.record.authorities.iter_mut().find(|authority| authority.number == number);
        match found {
            Some(authority) if authority.number != newest => authority.is_retired = true,
            Some(_) => {
                let what = format!("authority {number} signs; make another first (`borealis fleet rotate`)");
                return Err(FleetError::Authority(what));
            }
            None => return Err(FleetError::Authority(format!("there is no authority {number}"))),
        }
        self.save()
    }

    fn newest(&self) -> Authority {
        *self.record.authorities.last().expect("a fleet has an authority from its making on")
    }

    fn add_authority(&mut self, validity: Validity) -> Result<Authority, FleetError> {
        let number = self.record.authorities.last().map_or(1, |newest| newest.number + 1);
        let authority = Authority { number, valid_until_seconds: seconds(validity.until), is_retired: false };
        let key = KeyPair::generate()?;
        let mut params = authority.params(&self.record.name);
        set_validity(&mut params, validity);
        let certificate = params.self_signed(&key)?;
        let path = authority_key(&self.folder, number);
        if fs::symlink_metadata(&path).is_ok() {
            // Of a rotation that was interrupted before anybody was told of it, or somebody's own.
            return Err(FleetError::Authority(format!(
                "{} is there already and belongs to no authority in {RECORD_NAME}; move it away",
                path.display()
            )));
        }
        write_whole(&path, SECRET, key.serialize_pem().as_bytes()).map_err(file_error(&path))?;
        let path = authority_certificate(&self.folder, number);
        let note = format!(
            "{NOTE}borealis://{}/ authority {number}, until {}\n",
            self.record.name,
            day(validity.until)
        );
        write_whole(&path, PUBLIC, (note + &certificate.pem()).as_bytes()).map_err(file_error(&path))?;
        self.record.authorities.push(authority);
        self.save()?;
        Ok(authority)
    }

    /// Writes the record, and then what follows from it.
    fn save(&self) -> Result<(), FleetError> {
        let path = self.folder.join(RECORD_NAME);
        let text = serde_json::to_string_pretty(&self.record).expect("plain data becomes JSON");
        write_whole(&path, PUBLIC, (text + "\n").as_bytes()).map_err(file_error(&path))?;
        self.write_bundle()
    }

    fn write_bundle(&self) -> Result<(), FleetError> {
        let bundle = self.bundle()?;
        let path = self.authorities_file();
        write_whole(&path, PUBLIC, bundle.as_bytes()).map_err(file_error(&path))
    }

    fn trusted(&self) -> impl Iterator<Item = &Authority> {
        self.record.authorities.iter().filter(|authority| !authority.is_retired)
    }

    /// The certificates of the authorities that are trusted, each with its list of what it has taken back.
    fn bundle(&self) -> Result<String, FleetError> {
        let mut bundle = String::new();
        for authority in self.trusted() {
            let path = authority_certificate(&self.folder, authority.number);
            bundle += &fs::read_to_string(&path).map_err(file_error(&path))?;
            let path = revocation_list(&self.folder, authority.number);
            match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                list => bundle += &list.map_err(file_error(&path))?,
            }
        }
        Ok(bundle)
    }

    /// Makes or renews the certificate of a part in the folder `out`, for these hosts. A part that runs takes it with its
    /// next connection.
    ///
    /// # Errors
    /// When the folder has another part's, a host is none, or the folder cannot be written.
    pub fn issue(
        &self,
        role: Role,
        hosts: &[String],
        validity: Validity,
        out: &Path,
    ) -> Result<Issued, FleetError> {
        let identity = Identity { fleet: self.record.name.clone(), role };
        let files = TlsFiles::in_folder(out);
        if let Some(found) = noted_identity(&files.certificate)
            && found != identity.to_string()
        {
            return Err(FleetError::OtherPart { folder: out.to_owned(), found, wanted: identity });
        }
        if matches!(role, Role::Node(_)) && hosts.is_empty() {
            return Err(FleetError::NoHost);
        }
        let newest = self.newest();
        let until = validity.until.min(newest.valid_until());
        let mut params = part_params(&identity, hosts)?;
        set_validity(&mut params, Validity { until, ..validity });
        let key_path = authority_key(&self.folder, newest.number);
        let key = fs::read_to_string(&key_path).map_err(file_error(&key_path))?;
        let issuer = newest.issuer(&self.record.name, KeyPair::from_pem(&key)?);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let folder = out.strip_prefix(&self.folder).unwrap_or(out).to_owned();
        Register::open(&self.folder)?.append(&[Entry::Issued(Certificate {
            serial: serial_of(&certificate),
            authority: newest.number,
            identity: identity.clone(),
            until_seconds: seconds(until),
            hosts: if matches!(role, Role::Node(_)) { hosts.to_vec() } else { Vec::new() },
            folder,
        })])?;
        let note = format!("{NOTE}{identity}, until {}\n", day(until));
        private_folder(out).map_err(file_error(out))?;
        let write = |path: &Path, mode, text: &str| {
            write_whole(path, mode, text.as_bytes()).map_err(file_error(path))
        };
        write(&files.authorities, PUBLIC, &self.bundle()?)?;
        write(&files.key, SECRET, &key.serialize_pem())?;
        // Last: whoever reads the three in between finds a key that belongs to no certificate, and looks again.
        write(&files.certificate, PUBLIC, &(note + &certificate.pem()))?;
        Ok(Issued { identity, files, until })
    }
}

/// A certificate that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// Whose.
    pub identity: Identity,
    /// Where it is.
    pub files: TlsFiles,
    /// Until when it is valid.
    pub until: SystemTime,
}

impl Issued {
    /// The last day it is valid, as `2027-11-27`.
    #[must_use]
    pub fn last_day(&self) -> String {
        day(self.until)
    }
}

fn authority_key(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("authority-{number}.key"))
}

fn authority_certificate(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("authority-{number}.pem"))
}

/// The number that the library gave a certificate.
fn serial_of(certificate: &rcgen::Certificate) -> Serial {
    let parsed = webpki::EndEntityCert::try_from(certificate.der()).expect("it was just made");
    Serial::of(parsed.serial())
}

/// What a part's certificate says, apart from its key and validity.
fn part_params(identity: &Identity, hosts: &[String]) -> Result<CertificateParams, FleetError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.to_string());
    params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
    for host in hosts {
        params.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_host_name(host) => SanType::DnsName(host.as_str().try_into()?),
            Err(_) => return Err(FleetError::Host(host.clone())),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if matches!(identity.role, Role::Node(_)) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn is_host_name(host: &str) -> bool {
    matches!(format!("tls:{host}:1").parse(), Ok(borealis_spec::Endpoint::Tls { .. }))
}

/// Whose certificate is in the file, as its first line says; `None` if it does not.
fn noted_identity(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (identity, _) = text.strip_prefix(NOTE)?.split_once(',')?;
    Some(identity.to_owned())
}

#[cfg(test)]
mod tests;
