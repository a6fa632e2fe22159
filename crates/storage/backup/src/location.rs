//! The URL that says where a backup is kept.
//!
//! ```text
//! file:///var/backups/shop
//! s3://bucket/prefix?region=eu-central-1
//! s3://bucket/prefix?endpoint=http://127.0.0.1:9000        any server that speaks S3
//! s3://bucket/prefix?sse_kms_key_id=…                      the server encrypts with this key
//! gs://bucket/prefix                                       Google Cloud Storage
//! az://container/prefix?account=shop                       Azure; also azure://, abfs://, abfss://
//! abfss://container@shop.dfs.core.windows.net/prefix       the same
//! ```
//!
//! Credentials are never in it: URLs stand in command lines, logs and status. They come from the environment or the files that each
//! provider's own tools read.

use std::fmt;
use std::path::PathBuf;

/// Where a backup is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// In a folder, by its absolute path.
    Folder(PathBuf),
    /// In a bucket of a cloud's object store, or of what speaks like it.
    Cloud(CloudLocation),
}

/// Whose protocol an object store speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// Amazon S3, and every server that speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    /// The scheme that URLs are shown with.
    fn scheme(self) -> &'static str {
        match self {
            Provider::S3 => "s3",
            Provider::Google => "gs",
            Provider::Azure => "az",
        }
    }

    /// What may follow the `?`.
    fn options(self) -> &'static [OptionName] {
        use OptionName::{Account, Endpoint, Region, SseKmsKeyId, StorageClass};
        match self {
            Provider::S3 => &[Endpoint, Region, SseKmsKeyId, StorageClass],
            Provider::Google => &[Endpoint, StorageClass],
            Provider::Azure => &[Account, Endpoint, StorageClass],
        }
    }

    /// Where credentials are to be put instead of into a URL.
    fn credentials(self) -> &'static str {
        match self {
            Provider::S3 => "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Provider::Google => "set GOOGLE_APPLICATION_CREDENTIALS to the file with the key",
            Provider::Azure => "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        }
    }
}

/// An option of a URL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OptionName {
    Account,
    Endpoint,
    Region,
    SseKmsKeyId,
    StorageClass,
}

impl OptionName {
    fn word(self) -> &'static str {
        match self {
            OptionName::Account => "account",
            OptionName::Endpoint => "endpoint",
            OptionName::Region => "region",
            OptionName::SseKmsKeyId => "sse_kms_key_id",
            OptionName::StorageClass => "storage_class",
        }
    }
}

/// A place in a bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloudLocation {
    /// Whose it is.
    pub provider: Provider,
    /// The bucket; with Azure, the container.
    pub bucket: String,
    /// What every key begins with, without a slash at its ends; empty for none.
    pub prefix: String,
    /// The server; the provider's own if it is absent.
    pub endpoint: Option<String>,
    /// S3's region; what the environment says, or the first one there was.
    pub region: Option<String>,
    /// The key of AWS's key service with which S3 encrypts.
    pub sse_kms_key_id: Option<String>,
    /// S3's or Google's storage class, or Azure's access tier, of each object; the bucket's default if it is absent.
    pub storage_class: Option<String>,
    /// Azure's storage account; what the environment says if it is absent.
    pub account: Option<String>,
}

/// A URL that does not say where a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` does not say where a backup is kept: {what}")]
pub struct LocationError {
    /// The URL, without what may be a secret.
    url: String,
    what: String,
}

/// Classes whose objects can be read only hours after somebody asked for them. A node reads back what it uploaded.
const CLASSES_AT_REST: [&str; 3] = ["GLACIER", "DEEP_ARCHIVE", "Archive"];

/// A part of a path in a store, as [`crate::store`] takes it.
fn is_plain(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
}

impl std::str::FromStr for Location {
    type Err = LocationError;

    fn from_str(url: &str) -> Result<Location, LocationError> {
        let error = |what: &str| LocationError { url: shown(url), what: what.to_owned() };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| error("write it as file:///folder, s3://bucket/prefix, gs:// or az://"))?;
        let provider = match scheme {
            "file" if rest.starts_with('/') => return Ok(Location::Folder(PathBuf::from(rest))),
            "file" => {
                return Err(error(
                    "a folder has an absolute path, with three slashes before it: file:///folder",
                ));
            }
            "s3" => Provider::S3,
            "gs" => Provider::Google,
            "az" | "azure" | "abfs" | "abfss" => Provider::Azure,
            _ => return Err(error("its scheme is none of file, s3, gs and az")),
        };
        parse_cloud(provider, rest).map(Location::Cloud).map_err(|what| error(&what))
    }
}

/// A URL for an error. No more of it than the scheme when there might be a secret in it: a password before an `@`, or the value of an option.
fn shown(url: &str) -> String {
    let options = || url.split_once('?').map_or("", |(_, query)| query).split('&');
    let is_harmless = |option: &str| {
        let name = option.split('=').next().unwrap_or_default();
        ["account", "endpoint", "region", "sse_kms_key_id", "storage_class"].contains(&name)
    };
    let may_be_secret =
        url.contains('@') || !options().all(|option| option.is_empty() || is_harmless(option));
    if !may_be_secret {
        return url.chars().take(200).collect();
    }
    url.split_once("://").map_or_else(|| "…".to_owned(), |(scheme, _)| format!("{scheme}://…"))
}

fn parse_cloud(provider: Provider, rest: &str) -> Result<CloudLocation, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, prefix) = path.split_once('/').unwrap_or((path, ""));
    let prefix = prefix.trim_end_matches('/');
    let no_credentials = || format!("credentials do not belong into a URL: {}", provider.credentials());
    let (bucket, account) = match host.split_once('@') {
        None => (host, None),
        Some((bucket, server)) => {
            let account = account_of(server).filter(|_| provider == Provider::Azure && is_plain(bucket));
            (bucket, Some(account.ok_or_else(no_credentials)?))
        }
    };
    if !is_plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_plain)) {
        return Err("bucket and prefix have letters, digits, `-`, `_` and `.` alone".to_owned());
    }
    let mut location = CloudLocation {
        provider,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: None,
        region: None,
        sse_kms_key_id: None,
        storage_class: None,
        account: account.map(str::to_owned),
    };
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let Some(known) = provider.options().iter().find(|known| known.word() == name) else {
            let names: Vec<&str> = provider.options().iter().map(|known| known.word()).collect();
            return Err(format!(
                "the options of {}:// are {}; {}",
                provider.scheme(),
                names.join(", "),
                no_credentials()
            ));
        };
        check_value(*known, value)?;
        let place = location.option_mut(*known);
        if place.is_some() {
            return Err(format!("it says {name} twice"));
        }
        *place = Some(value.to_owned());
    }
    Ok(location)
}

/// The account whose server this is, by one of the two names that Azure gives it.
fn account_of(server: &str) -> Option<&str> {
    let (account, domain) = server.split_once('.')?;
    let is_azure = ["dfs.core.windows.net", "blob.core.windows.net"].contains(&domain);
    (is_azure && is_account(account)).then_some(account)
}

fn is_account(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn check_value(name: OptionName, value: &str) -> Result<(), String> {
    let word = name.word();
    if value.is_empty() || value.contains('@') {
        return Err(format!("the option {word} has no value, or credentials in it"));
    }
    match name {
        OptionName::Endpoint if !value.starts_with("http://") && !value.starts_with("https://") => {
            Err("an endpoint begins with https:// or http://".to_owned())
        }
        // A token could be there.
        OptionName::Endpoint if value.contains(['?', '#']) => {
            Err("an endpoint is a server and a path alone".to_owned())
        }
        OptionName::Account if !is_account(value) => {
            Err("an account of Azure has small letters and digits alone".to_owned())
        }
        OptionName::StorageClass if CLASSES_AT_REST.iter().any(|class| class.eq_ignore_ascii_case(value)) => {
            Err(format!(
                "objects of class {value} cannot be read when they are needed; nodes read what they uploaded"
            ))
        }
        OptionName::StorageClass if !is_plain(value) => {
            Err("a storage class has letters, digits, `-` and `_` alone".to_owned())
        }
        _ => Ok(()),
    }
}

impl CloudLocation {
    fn option(&self, name: OptionName) -> Option<&str> {
        match name {
            OptionName::Account => self.account.as_deref(),
            OptionName::Endpoint => self.endpoint.as_deref(),
            OptionName::Region => self.region.as_deref(),
            OptionName::SseKmsKeyId => self.sse_kms_key_id.as_deref(),
            OptionName::StorageClass => self.storage_class.as_deref(),
        }
    }

    fn option_mut(&mut self, name: OptionName) -> &mut Option<String> {
        match name {
            OptionName::Account => &mut self.account,
            OptionName::Endpoint => &mut self.endpoint,
            OptionName::Region => &mut self.region,
            OptionName::SseKmsKeyId => &mut self.sse_kms_key_id,
            OptionName::StorageClass => &mut self.storage_class,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cloud = match self {
            Location::Folder(path) => return write!(f, "file://{}", path.display()),
            Location::Cloud(cloud) => cloud,
        };
        write!(f, "{}://{}", cloud.provider.scheme(), cloud.bucket)?;
        if !cloud.prefix.is_empty() {
            write!(f, "/{}", cloud.prefix)?;
        }
        let names = cloud.provider.options().iter();
        let given = names.filter_map(|name| Some((name.word(), cloud.option(*name)?)));
        for ((name, value), sign) in given.zip(std::iter::once('?').chain(std::iter::repeat('&'))) {
            write!(f, "{sign}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_location_is_read_as_it_is_shown() {
        for url in [
            "file:///var/backups/shop",
            "s3://bucket",
            "s3://bucket/some/prefix",
            "s3://my.bucket/p?endpoint=http://127.0.0.1:9000&region=eu-central-1",
            "s3://bucket?sse_kms_key_id=1234",
            "s3://bucket?storage_class=STANDARD_IA",
            "gs://bucket/some/prefix?endpoint=http://127.0.0.1:9000",
            "az://container/prefix?account=shop&storage_class=Cool",
        ] {
            let location: Location = url.parse().unwrap();
            assert_eq!(location.to_string(), url);
        }
        for (url, shown) in [
            ("s3://bucket/", "s3://bucket"),
            ("abfss://box@shop.dfs.core.windows.net/a/", "az://box/a?account=shop"),
            ("az://box@shop.blob.core.windows.net", "az://box?account=shop"),
            ("azure://box/a?endpoint=http://127.0.0.1:1/shop", "az://box/a?endpoint=http://127.0.0.1:1/shop"),
            ("abfs://box", "az://box"),
        ] {
            assert_eq!(url.parse::<Location>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_it_cannot_be_is_refused_and_no_secret_is_repeated() {
        for url in [
            "/var/backups",
            "file://backups",
            "ftp://host/x",
            "gs://",
            "gs://bucket?region=eu",
            "az://box?sse_kms_key_id=1",
            "az://box?account=Shop.x",
            "s3://bucket?account=shop",
            "s3://bucket?region=a&region=b",
            "s3://bucket?storage_class=GLACIER",
            "az://box?storage_class=archive",
            "s3://",
            "s3:///prefix",
            "s3://bucket/../x",
            "s3://bucket//x",
            "s3://bucket?endpoint=127.0.0.1:9000",
            "s3://bucket?endpoint=",
            "s3://bucket?endpoint=http://host?x",
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(url), "{error}");
        }
        for url in [
            "s3://AKIA:hush@bucket/x",
            "s3://bucket?secret_access_key=hush",
            "s3://bucket?endpoint=http://me:hush@host",
            "gs://me:hush@bucket/x",
            "gs://bucket?access_token=hush",
            "az://box?sv=2024&sig=hush",
            "az://me:hush@shop.blob.core.windows.net/x",
            "az://box@hush.example.com/x",
            "az://box?hush",
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
            assert!(error.contains("credentials") && error.contains("://…"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "(s3|file|gs|az|abfss)?(://)?.{0,40}") {
            if let Ok(location) = text.parse::<Location>() {
                prop_assert_eq!(location.to_string().parse(), Ok(location));
            }
        }
    }
}
