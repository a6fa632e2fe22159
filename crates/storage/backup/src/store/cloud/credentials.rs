//! Whose name a store is asked in: what the environment and the providers' own files say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;

/// A longer file is none of AWS's.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where credentials come from: variables, and files that they or a home folder name. They are read anew when a store refuses.
#[derive(Clone, Default)]
pub struct CredentialSource {
    variables: BTreeMap<String, String>,
}

impl std::fmt::Debug for CredentialSource {
    /// Names alone: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl CredentialSource {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> CredentialSource {
        let beginnings = ["AWS_", "GOOGLE_", "AZURE_"];
        let is_wanted = |name: &String| {
            beginnings.iter().any(|beginning| name.starts_with(beginning))
                || ["HOME", "SERVICE_ACCOUNT", "IDENTITY_ENDPOINT"].contains(&name.as_str())
        };
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables = std::env::vars_os().filter_map(text).filter(|(name, _)| is_wanted(name));
        CredentialSource { variables: variables.collect() }
    }

    /// These variables and no others.
    #[must_use]
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> CredentialSource {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        CredentialSource { variables: variables.into_iter().map(owned).collect() }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A file that a variable names, or that lies in `~/.aws`.
    fn file(&self, variable: &str, name: &str) -> Option<String> {
        let home = || Some(Path::new(self.variable("HOME")?).join(".aws").join(name));
        let path = self.variable(variable).map(PathBuf::from).or_else(home)?;
        let length = std::fs::metadata(&path).ok()?.len();
        (length <= FILE_BYTES_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()
    }

    /// Settings of one provider that variables of its own have: those that begin with `beginning` and that its client knows.
    fn settings<K: std::str::FromStr>(&self, beginning: &str) -> impl Iterator<Item = (K, &str)> {
        let own = self.variables.iter().filter(move |(name, _)| name.starts_with(beginning));
        own.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
    }

    /// A client of Google's that has these credentials: those of a service account, those that `gcloud auth application-default login` left, or
    /// those of the machine that it runs on.
    pub(super) fn google(&self) -> GoogleCloudStorageBuilder {
        let mut builder = GoogleCloudStorageBuilder::new();
        if let Some(file) = self.variable("SERVICE_ACCOUNT") {
            builder = builder.with_service_account_path(file);
        }
        for (key, value) in self.settings("GOOGLE_") {
            builder = builder.with_config(key, value);
        }
        builder
    }

    /// A client of Azure's that has these credentials: an account's key, a signature that gives access, or an identity, as the variables say; else
    /// those of the machine that it runs on.
    pub(super) fn azure(&self) -> MicrosoftAzureBuilder {
        let mut builder = MicrosoftAzureBuilder::new();
        for (key, value) in self.settings("AZURE_") {
            builder = builder.with_config(key, value);
        }
        if let Some(endpoint) = self.variable("IDENTITY_ENDPOINT") {
            builder = builder.with_msi_endpoint(endpoint);
        }
        builder
    }

    /// A client of S3 that has these credentials. Where neither variables nor files have any, it asks the machine that it runs on, as AWS's own do.
    pub(super) fn s3(&self) -> AmazonS3Builder {
        let mut builder = AmazonS3Builder::new();
        for (key, value) in self.settings("AWS_") {
            builder = builder.with_config(key, value);
        }
        let profile = self.variable("AWS_PROFILE").unwrap_or("default");
        let has_others = [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        if !has_others.iter().any(|name| self.variables.contains_key(*name)) {
            let file = self.file("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default();
            let section = section(&file, profile);
            if let (Some(id), Some(secret)) =
                (section.get("aws_access_key_id"), section.get("aws_secret_access_key"))
            {
                builder = builder.with_access_key_id(*id).with_secret_access_key(*secret);
                if let Some(token) = section.get("aws_session_token") {
                    builder = builder.with_token(*token);
                }
            }
        }
        if !["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| self.variables.contains_key(*name)) {
            let file = self.file("AWS_CONFIG_FILE", "config").unwrap_or_default();
            let name = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
            if let Some(region) = section(&file, &name).get("region") {
                builder = builder.with_region(*region);
            }
        }
        builder
    }
}

/// What a file in AWS's format says under a heading.
fn section<'a>(file: &'a str, name: &str) -> BTreeMap<&'a str, &'a str> {
    let mut is_wanted = false;
    let mut values = BTreeMap::new();
    for line in file.lines().map(str::trim) {
        if let Some(heading) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_wanted = heading.trim() == name;
        } else if let Some((key, value)) =
            line.split_once('=').filter(|_| is_wanted && !line.starts_with(['#', ';']))
        {
            values.insert(key.trim(), value.trim());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_has_its_own_values_alone() {
        let file = "[other]\naws_access_key_id = no\n\n[ default ]\n# a = b\naws_access_key_id=AKIA\naws_secret_access_key = a=b/c \n[x]\nregion = mars";
        let values = section(file, "default");
        assert_eq!(
            values,
            BTreeMap::from([("aws_access_key_id", "AKIA"), ("aws_secret_access_key", "a=b/c")])
        );
        assert_eq!(section(file, "x").get("region"), Some(&"mars"));
        assert!(section(file, "none").is_empty() && section("", "default").is_empty());
    }

    #[test]
    fn secrets_are_not_shown() {
        let source = CredentialSource::of([("AWS_SECRET_ACCESS_KEY", "hush")]);
        assert_eq!(format!("{source:?}"), r#"{"AWS_SECRET_ACCESS_KEY"}"#);
    }
}
