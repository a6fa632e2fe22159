//! What a fleet's authorities have signed, and what was taken back: `certificates.jsonl`, one JSON object on each line.
//!
//! ```text
//! {"issued":{"serial":"4f…","authority":1,"identity":"borealis://north/node/3","until_seconds":…,"hosts":["h3"],"folder":"node-3"}}
//! {"revoked":{"serial":"4f…","authority":1,"revoked_seconds":…}}
//! ```
//!
//! A line is written before what it says is done: a certificate that anybody has is noted here, or older than this file. Lines are
//! only ever added; one without an end was being written when its process was killed, and counts for nothing.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borealis_spec::Identity;
use serde::{Deserialize, Serialize};

use crate::files::PUBLIC;
use crate::{FleetError, day, file_error};

const REGISTER_NAME: &str = "certificates.jsonl";
/// Most bytes of a serial number: RFC 5280, section 4.1.2.2.
const SERIAL_BYTES_MAX: usize = 20;

/// The number that an authority gave a certificate: at most 20 bytes, without zeros before them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

/// Text that is no serial number.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` is no serial number of a certificate: it has up to 40 hexadecimal digits, as `borealis fleet list` and \
     `openssl x509 -noout -serial` print it"
)]
pub struct ParseSerialError(String);

impl Serial {
    /// The number that has these bytes, the highest first.
    #[must_use]
    pub(crate) fn of(bytes: &[u8]) -> Serial {
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        Serial(bytes[zeros..].to_vec())
    }

    /// Its bytes, the highest first.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = ParseSerialError;

    /// Hexadecimal, in pairs, with `:` between them or without.
    fn from_str(text: &str) -> Result<Serial, ParseSerialError> {
        let wrong = || ParseSerialError(text.chars().take(100).collect());
        let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b':').collect();
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let pairs = digits.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(wrong());
        }
        let bytes: Option<Vec<u8>> = pairs.map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect();
        let serial = Serial::of(&bytes.ok_or_else(wrong)?);
        if serial.0.is_empty() || serial.0.len() > SERIAL_BYTES_MAX { Err(wrong()) } else { Ok(serial) }
    }
}

impl TryFrom<String> for Serial {
    type Error = ParseSerialError;

    fn try_from(text: String) -> Result<Serial, ParseSerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.to_string()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A certificate that was made for a part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Its number, which no other certificate of its authority has.
    pub serial: Serial,
    /// The number of the authority that signed it.
    pub authority: u32,
    /// Whose it is.
    #[serde(with = "identity_text")]
    pub identity: Identity,
    /// Until when it is valid, in seconds since 1970.
    pub until_seconds: u64,
    /// The names and addresses of a node.
    pub hosts: Vec<String>,
    /// The folder that it was put into, seen from the fleet's if it is inside.
    pub folder: PathBuf,
}

impl Certificate {
    /// The last day it is valid, as `2027-11-27`.
    #[must_use]
    pub fn last_day(&self) -> String {
        day(UNIX_EPOCH + Duration::from_secs(self.until_seconds))
    }

    /// Whether it is valid at this time, as far as time goes.
    #[must_use]
    pub fn has_not_expired(&self, now: SystemTime) -> bool {
        self.until_seconds > crate::seconds(now)
    }

    /// Whether it was made for a part on this host.
    #[must_use]
    pub(crate) fn is_for_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|name| name == host)
            || self.folder.starts_with(Path::new(crate::hosts::HOSTS_NAME).join(host))
    }
}

/// A certificate that is taken back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revocation {
    pub(crate) authority: u32,
    pub(crate) serial: Serial,
    pub(crate) revoked_seconds: u64,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Entry {
    Issued(Certificate),
    Revoked(Revocation),
}

/// All lines, in their order.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) revocations: Vec<Revocation>,
}

impl Content {
    /// When the certificate was revoked, in seconds since 1970; `None` if it was not.
    pub(crate) fn revoked_seconds(&self, authority: u32, serial: &Serial) -> Option<u64> {
        let of_it =
            |revocation: &&Revocation| revocation.authority == authority && revocation.serial == *serial;
        self.revocations.iter().find(of_it).map(|revocation| revocation.revoked_seconds)
    }
}

/// The file, which no other process changes while this lives.
#[derive(Debug)]
pub(crate) struct Register {
    path: PathBuf,
    file: File,
}

impl Register {
    /// Opens the register of the fleet in `folder`, and makes it if there is none. Waits for other processes that use it.
    pub(crate) fn open(folder: &Path) -> Result<Register, FleetError> {
        let path = folder.join(REGISTER_NAME);
        let is_new = !path.exists();
        let open = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            let file = options.read(true).append(true).create(true).mode(PUBLIC).open(&path)?;
            file.lock()?;
            if is_new {
                // Root may be the first to revoke something of another user's fleet, who has to go on adding lines.
                let (owner, own) = (fs::metadata(folder)?, file.metadata()?);
                if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) {
                    fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
                }
                File::open(folder)?.sync_all()?;
            }
            Ok(file)
        };
        let file = open().map_err(file_error(&path))?;
        Ok(Register { path, file })
    }

    /// What is in it.
    pub(crate) fn read(&mut self) -> Result<Content, FleetError> {
        let text = self.whole().map_err(file_error(&self.path))?;
        let mut content = Content::default();
        for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let Some(line) = line.strip_suffix(b"\n") else { break };
            let entry = serde_json::from_slice(line).map_err(|error| FleetError::Damaged {
                path: self.path.clone(),
                reason: format!(
                    "line {}: {error}. Put a copy of it back, or remove that line: what it says is then not known",
                    index + 1
                ),
            })?;
            match entry {
                Entry::Issued(certificate) => content.certificates.push(certificate),
                Entry::Revoked(revocation) => content.revocations.push(revocation),
            }
        }
        Ok(content)
    }

    /// Adds lines, durably.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), FleetError> {
        let mut text = Vec::new();
        for entry in entries {
            text.extend(serde_json::to_vec(entry).expect("plain data becomes JSON"));
            text.push(b'\n');
        }
        self.write(&text).map_err(file_error(&self.path))
    }

    fn whole(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut text)?;
        Ok(text)
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let before = self.whole()?;
        let lines = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if lines < before.len() {
            self.file.set_len(lines as u64)?;
        }
        self.file.write_all(text)?;
        self.file.sync_all()
    }
}

/// An identity as the text that stands in certificates.
mod identity_text {
    use borealis_spec::Identity;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(identity: &Identity, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(identity)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Identity, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::Role;

    fn certificate(number: u8) -> Entry {
        Entry::Issued(Certificate {
            serial: Serial(vec![number]),
            authority: 1,
            identity: Identity { fleet: "f".parse().expect("a name"), role: Role::Client },
            until_seconds: 7,
            hosts: Vec::new(),
            folder: "client".into(),
        })
    }

    #[test]
    fn a_serial_number_is_taken_as_others_print_it() {
        let serial: Serial = "004F:a0".parse().expect("a number");
        assert_eq!((serial.to_string().as_str(), serial.bytes()), ("4fa0", &[0x4F, 0xA0][..]));
        for wrong in ["", "00", "4fa", "4g", "serial", &"ff".repeat(21)] {
            assert!(wrong.parse::<Serial>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_that_was_cut_counts_for_nothing_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let open = || Register::open(folder.path()).expect("opened");
        open().append(&[certificate(1), certificate(2)]).expect("written");
        let path = folder.path().join(REGISTER_NAME);
        let whole = std::fs::read(&path).expect("read");
        for cut in 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            let complete = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(open().read().expect("read").certificates.len(), complete, "cut at {cut}");
            open().append(&[certificate(3)]).expect("written");
            let certificates = open().read().expect("read").certificates;
            assert_eq!(certificates.len(), complete + 1, "cut at {cut}");
            assert_eq!(certificates.last().map(|last| last.serial.bytes()), Some(&[3][..]));
        }
        std::fs::write(&path, "{}\n").expect("written");
        let said = open().read().expect_err("no entry").to_string();
        assert!(said.contains("line 1"), "{said}");
    }
}
