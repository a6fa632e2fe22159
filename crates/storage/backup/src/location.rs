//! The URL that says where a backup is kept.
//!
//! ```text
//! file:///var/backups/shop
//! s3://bucket/prefix?region=eu-central-1
//! s3://bucket/prefix?endpoint=http://127.0.0.1:9000        any server that speaks S3
//! s3://bucket/prefix?sse_kms_key_id=…                      the server encrypts with this key
//! ```
//!
//! Credentials are never in it: URLs stand in command lines, logs and status. They come from the environment or the files that AWS's own tools
//! read.

use std::fmt;
use std::path::PathBuf;

/// Where a backup is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// In a folder, by its absolute path.
    Folder(PathBuf),
    /// In a bucket of S3, or of what speaks like it.
    S3(S3Location),
}

/// A place in a bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3Location {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without a slash at its ends; empty for none.
    pub prefix: String,
    /// The server; AWS's own if it is absent.
    pub endpoint: Option<String>,
    /// The region; what the environment says, or the first one there was.
    pub region: Option<String>,
    /// The key of AWS's key service with which the server encrypts.
    pub sse_kms_key_id: Option<String>,
}

/// A URL that does not say where a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` does not say where a backup is kept: {what}")]
pub struct LocationError {
    /// The URL, without what may be a secret.
    url: String,
    what: String,
}

/// A part of a path in a store, as [`crate::store`] takes it.
fn is_plain(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
}

impl std::str::FromStr for Location {
    type Err = LocationError;

    fn from_str(url: &str) -> Result<Location, LocationError> {
        // Not more of it than the scheme is shown when there might be a secret in it.
        let shown =
            || if url.contains('@') || url.contains("key=") || url.contains("secret") { "…" } else { url };
        let error =
            |what: &str| LocationError { url: shown().chars().take(200).collect(), what: what.to_owned() };
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| error("write it as file:///folder or s3://bucket/prefix"))?;
        match scheme {
            "file" if rest.starts_with('/') => Ok(Location::Folder(PathBuf::from(rest))),
            "file" => {
                Err(error("a folder has an absolute path, with three slashes before it: file:///folder"))
            }
            "s3" => parse_s3(rest).map(Location::S3).map_err(|what| error(&what)),
            "gs" | "az" | "azure" | "abfs" => {
                Err(error("this version keeps backups in folders and in S3 alone"))
            }
            _ => Err(error("its scheme is neither file nor s3")),
        }
    }
}

fn parse_s3(rest: &str) -> Result<S3Location, String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let prefix = prefix.trim_end_matches('/');
    if bucket.contains('@') {
        return Err("credentials do not belong into a URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            .to_owned());
    }
    if !is_plain(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_plain)) {
        return Err("bucket and prefix have letters, digits, `-`, `_` and `.` alone".to_owned());
    }
    let mut location = S3Location {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: None,
        region: None,
        sse_kms_key_id: None,
    };
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let place = match name {
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                &mut location.endpoint
            }
            "endpoint" => return Err("an endpoint begins with https:// or http://".to_owned()),
            "region" => &mut location.region,
            "sse_kms_key_id" => &mut location.sse_kms_key_id,
            _ => return Err(
                "the options are endpoint, region and sse_kms_key_id; credentials come from the environment"
                    .to_owned(),
            ),
        };
        if value.is_empty() || value.contains('@') {
            return Err(format!("the option {name} has no value, or credentials in it"));
        }
        *place = Some(value.to_owned());
    }
    Ok(location)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s3 = match self {
            Location::Folder(path) => return write!(f, "file://{}", path.display()),
            Location::S3(s3) => s3,
        };
        write!(f, "s3://{}", s3.bucket)?;
        if !s3.prefix.is_empty() {
            write!(f, "/{}", s3.prefix)?;
        }
        let options =
            [("endpoint", &s3.endpoint), ("region", &s3.region), ("sse_kms_key_id", &s3.sse_kms_key_id)];
        let given = options.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
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
        ] {
            let location: Location = url.parse().unwrap();
            assert_eq!(location.to_string(), url);
        }
        assert_eq!("s3://bucket/".parse::<Location>().unwrap().to_string(), "s3://bucket");
    }

    #[test]
    fn what_it_cannot_be_is_refused_and_no_secret_is_repeated() {
        for url in [
            "/var/backups",
            "file://backups",
            "ftp://host/x",
            "gs://bucket",
            "s3://",
            "s3:///prefix",
            "s3://bucket/../x",
            "s3://bucket//x",
            "s3://bucket?endpoint=127.0.0.1:9000",
            "s3://bucket?endpoint=",
            "s3://bucket?colour=red",
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(url), "{error}");
        }
        for url in [
            "s3://AKIA:hush@bucket/x",
            "s3://bucket?secret_access_key=hush",
            "s3://bucket?endpoint=http://me:hush@host",
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "(s3|file|gs)?(://)?.{0,40}") {
            if let Ok(location) = text.parse::<Location>() {
                prop_assert_eq!(location.to_string().parse(), Ok(location));
            }
        }
    }
}
