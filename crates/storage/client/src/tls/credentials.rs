//! The files of a part's certificate, and what TLS makes of them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_spec::{FleetName, Identity, Role, TlsFiles};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::names::Names;
use super::words;

/// How often the files are looked at for a change, at most: when a connection is made, and never between.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// From so long before it expires, a certificate is warned of.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a part's certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold {wanted}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        wanted: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Others may read the key.
    #[error("the key {0} can be read by others; `chmod 0600` it, and make a new one if they might have")]
    Exposed(PathBuf),
    /// The certificate is no part's of a fleet.
    #[error(
        "the certificate {path} does not say who its owner is: {reason}. Make one with `borealis fleet certificate`"
    )]
    NoIdentity {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with its names.
        reason: String,
    },
    /// Everyone would refuse the certificate.
    #[error("the certificate {path} of {identity} cannot be used: {reason}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Whose it is.
        identity: Identity,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// It is another part's.
    #[error(
        "the certificate {path} is that of {identity}, where that of {wanted} is needed; make one with \
         `borealis fleet certificate`"
    )]
    OtherPart {
        /// The certificate's file.
        path: PathBuf,
        /// Whose it is.
        identity: Identity,
        /// Whose it should be.
        wanted: String,
    },
}

/// What was made of the files.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) identity: Identity,
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    /// It is valid no more in [`EXPIRY_WARNING`].
    expires_soon: bool,
}

/// What tells one version of a file from the next.
type Stamp = (u64, u64, i64, i64, u64);

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// Of the files when they were last read, with or without success.
    stamps: Option<[Stamp; 3]>,
    looked_at: Instant,
}

/// The certificate of this process, with the authorities whose word it takes for others. New files are noticed by the next
/// connection; if they cannot be used, those before them go on being used.
#[derive(Debug)]
pub struct Credentials {
    files: TlsFiles,
    state: Mutex<State>,
    pub(crate) names: Names,
}

impl Credentials {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// When one is missing or exposed, they do not belong together, or nobody would take the certificate.
    pub fn load(files: TlsFiles) -> Result<Arc<Credentials>, CredentialsError> {
        let stamps = stamps(&files);
        let loaded = Arc::new(load(&files)?);
        warn_of_expiry(&files, &loaded);
        let state = Mutex::new(State { loaded, stamps, looked_at: Instant::now() });
        Ok(Arc::new(Credentials { files, state, names: Names::default() }))
    }

    /// As [`Credentials::load`], for a process that is this part of its fleet.
    ///
    /// # Errors
    /// As [`Credentials::load`], and when the certificate is another part's.
    pub fn load_for(files: TlsFiles, role: Role) -> Result<Arc<Credentials>, CredentialsError> {
        let credentials = Credentials::load(files)?;
        let identity = credentials.identity();
        if identity.role == role {
            return Ok(credentials);
        }
        let wanted = Identity { fleet: identity.fleet.clone(), role }.to_string();
        Err(CredentialsError::OtherPart { path: credentials.files.certificate.clone(), identity, wanted })
    }

    /// Whose certificate it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.lock().loaded.identity.clone()
    }

    /// The fleet that it belongs to.
    #[must_use]
    pub fn fleet(&self) -> FleetName {
        self.identity().fleet
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// What the next connection is made with.
    pub(super) fn current(&self) -> Arc<Loaded> {
        let mut state = self.lock();
        if state.looked_at.elapsed() >= LOOK_INTERVAL {
            state.looked_at = Instant::now();
            let found = stamps(&self.files);
            // Between two renames a file may be missing; what is loaded is good.
            if found.is_some() && found != state.stamps {
                state.stamps = found;
                self.take(&mut state, load(&self.files));
            }
        }
        Arc::clone(&state.loaded)
    }

    fn take(&self, state: &mut State, loaded: Result<Loaded, CredentialsError>) {
        let path = self.files.certificate.display();
        match loaded {
            Ok(loaded) if loaded.identity == state.loaded.identity => {
                tracing::info!(identity = %loaded.identity, "took a new certificate from {path}");
                warn_of_expiry(&self.files, &loaded);
                state.loaded = Arc::new(loaded);
            }
            Ok(loaded) => {
                let (own, other) = (&state.loaded.identity, &loaded.identity);
                tracing::warn!(
                    "{path} is now that of {other}; this process is {own} and keeps its certificate"
                );
            }
            // The key and the certificate may not both be there yet; then they change once more.
            Err(error) => tracing::warn!("a new certificate is not used, the one before it is: {error}"),
        }
    }
}

fn warn_of_expiry(files: &TlsFiles, loaded: &Loaded) {
    if loaded.expires_soon {
        let days = EXPIRY_WARNING.as_secs() / (24 * 3600);
        tracing::warn!(
            identity = %loaded.identity,
            "the certificate {}, or the authority that signed it, expires in less than {days} days; renew it with \
             `borealis fleet certificate`",
            files.certificate.display()
        );
    }
}

fn stamps(files: &TlsFiles) -> Option<[Stamp; 3]> {
    let stamp = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
    };
    Some([stamp(&files.authorities)?, stamp(&files.certificate)?, stamp(&files.key)?])
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    fs::read(path).map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path, wanted: &'static str) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let content = |reason: String| CredentialsError::Content { path: path.to_owned(), wanted, reason };
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found.map_err(|error| content(error.to_string()))? {
        none if none.is_empty() => Err(content("no certificate in PEM is in it".to_owned())),
        some => Ok(some),
    }
}

/// Reads a private key, whose file may be read by its owner alone; one of root's by its group, too (as PostgreSQL has it).
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let failed = |source| CredentialsError::Read { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(failed)?;
    let forbidden = if found.uid() == 0 { 0o027 } else { 0o077 };
    if found.mode() & forbidden != 0 {
        return Err(CredentialsError::Exposed(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| CredentialsError::Content {
        path: path.to_owned(),
        wanted: "a private key",
        reason: error.to_string(),
    })
}

/// Whose certificate it is.
///
/// # Errors
/// Says what is wrong with its names.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let mut names = parsed.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(name), None) => {
            name.parse().map_err(|error: borealis_spec::ParseIdentityError| error.to_string())
        }
        (None, _) => Err("it has no URI among its names".to_owned()),
        (Some(_), Some(_)) => Err("it has more than one URI among its names".to_owned()),
    }
}

fn load(files: &TlsFiles) -> Result<Loaded, CredentialsError> {
    let path = files.certificate.clone();
    let mut authorities = RootCertStore::empty();
    for authority in certificates(&files.authorities, "the fleet's authorities")? {
        authorities.add(authority).map_err(|error| CredentialsError::Content {
            path: files.authorities.clone(),
            wanted: "the fleet's authorities",
            reason: error.to_string(),
        })?;
    }
    let chain = certificates(&files.certificate, "a certificate")?;
    let key = private_key(&files.key)?;
    let identity = identity_of(&chain[0])
        .map_err(|reason| CredentialsError::NoIdentity { path: path.clone(), reason })?;
    let unusable =
        |reason| CredentialsError::Unusable { path: path.clone(), identity: identity.clone(), reason };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authorities = Arc::new(authorities);
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&authorities), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(error.to_string()))?;
    let now = UnixTime::now();
    let valid_at = |time| callers.verify_client_cert(&chain[0], &chain[1..], time);
    valid_at(now).map_err(|error| unusable(words::of_own_certificate(&error)))?;
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + EXPIRY_WARNING);
    let expires_soon = valid_at(later).is_err();
    let (client, server) = configurations(&provider, authorities, callers, &chain, &key)
        .map_err(|error| unusable(words::of_own_certificate(&error)))?;
    Ok(Loaded { identity, client, server, expires_soon })
}

/// What both ends of connections are made with.
fn configurations(
    provider: &Arc<CryptoProvider>,
    authorities: Arc<RootCertStore>,
    callers: Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
    let nodes = WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(nodes)
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    client.resumption = Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
}
