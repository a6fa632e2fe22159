//! The files of a part's certificate, and what TLS makes of them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use borealis_spec::{FleetName, Identity, Role, TlsFiles};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::names::Names;
use super::revocations::Revocations;
use super::{der, words};

/// How often the files are looked at for a change, at most: when a connection is made, and when something comes on one.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// From so long before it expires, a certificate is warned of.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// And so often, for as long as it is not renewed.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

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
    /// A list of revoked certificates is of no use.
    #[error(
        "a list of revoked certificates in {path} cannot be used: {reason}. Take the file anew from the folder of the fleet's \
         authority, `fleet/authorities.pem` there"
    )]
    Revocations {
        /// The file of authorities.
        path: PathBuf,
        /// What is wrong with the list.
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
    /// When it is valid no more, or one between it and the authority.
    expires: SystemTime,
    revocations: Revocations,
}

/// What tells one version of a file from the next.
type Stamp = (u64, u64, i64, i64, u64);

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// Of the files when they were last read, with or without success.
    stamps: Option<[Stamp; 3]>,
    /// When somebody was told last that the certificate expires.
    warned_at: Option<Instant>,
}

/// The certificate of this process, with the authorities whose word it takes for others, and whom these have revoked. New files
/// are noticed by the next connection, and by the next bytes on one that is there; if they cannot be used, those before them
/// go on being used.
#[derive(Debug)]
pub struct Credentials {
    files: TlsFiles,
    state: Mutex<State>,
    began: Instant,
    /// When the files were looked at, in milliseconds since `began`.
    looked_at_ms: AtomicU64,
    /// Counts what was loaded, so that a connection need not ask whether it was judged by what counts now.
    generation: AtomicU64,
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
        let credentials = Credentials {
            files,
            state: Mutex::new(State { loaded, stamps, warned_at: None }),
            began: Instant::now(),
            looked_at_ms: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            names: Names::default(),
        };
        credentials.warn_of_expiry(&mut credentials.lock());
        Ok(Arc::new(credentials))
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

    /// When the certificate that is in use is valid no more, or one between it and the authority, in seconds since 1970.
    #[must_use]
    pub fn expires_seconds(&self) -> u64 {
        self.current().0.expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The fleet that it belongs to.
    #[must_use]
    pub fn fleet(&self) -> FleetName {
        self.identity().fleet
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// What the next connection is made with, and its generation.
    pub(super) fn current(&self) -> (Arc<Loaded>, u64) {
        let mut state = self.lock();
        self.look(&mut state);
        (Arc::clone(&state.loaded), self.generation.load(Ordering::Relaxed))
    }

    /// The generation of what counts now. Waits for nobody who looks at the files meanwhile.
    pub(super) fn generation(&self) -> u64 {
        if self.is_time_to_look()
            && let Ok(mut state) = self.state.try_lock()
        {
            self.look(&mut state);
        }
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether the certificate of somebody who is connected was revoked since.
    pub(super) fn revoke(&self, certificate: &CertificateDer<'_>) -> bool {
        self.lock().loaded.revocations.revoke(certificate)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_time_to_look(&self) -> bool {
        let since_ms = self.elapsed_ms().saturating_sub(self.looked_at_ms.load(Ordering::Relaxed));
        u128::from(since_ms) >= LOOK_INTERVAL.as_millis()
    }

    fn look(&self, state: &mut State) {
        if !self.is_time_to_look() {
            return;
        }
        self.looked_at_ms.store(self.elapsed_ms(), Ordering::Relaxed);
        let found = stamps(&self.files);
        // Between two renames a file may be missing; what is loaded is good.
        if found.is_some() && found != state.stamps {
            state.stamps = found;
            self.take(state, load(&self.files));
        }
        self.warn_of_expiry(state);
    }

    fn take(&self, state: &mut State, loaded: Result<Loaded, CredentialsError>) {
        let path = self.files.certificate.display();
        match loaded {
            Ok(loaded) if loaded.identity == state.loaded.identity => {
                tracing::info!(identity = %loaded.identity, "took a new certificate or new authorities from {path}");
                state.loaded = Arc::new(loaded);
                state.warned_at = None;
                self.generation.fetch_add(1, Ordering::Relaxed);
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

    fn warn_of_expiry(&self, state: &mut State) {
        let left = state.loaded.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let was_said = state.warned_at.is_some_and(|warned_at| warned_at.elapsed() < WARNING_INTERVAL);
        if left > EXPIRY_WARNING || was_said {
            return;
        }
        state.warned_at = Some(Instant::now());
        let path = self.files.certificate.display();
        let when = match left.as_secs() / (24 * 3600) {
            _ if left.is_zero() => "has expired".to_owned(),
            0 => "expires in less than a day".to_owned(),
            days => format!("expires in {days} days"),
        };
        tracing::warn!(
            identity = %state.loaded.identity,
            "the certificate {path} {when}; renew it with `borealis fleet certificate`"
        );
    }
}

/// Whose certificate is in a file, and when it is valid no more; neither its key nor an authority is looked at.
///
/// # Errors
/// When the file cannot be read, or is no certificate of a fleet's part.
pub fn expiry_of(certificate: &Path) -> Result<(Identity, SystemTime), CredentialsError> {
    let chain = certificates(certificate, "a certificate")?;
    let no_identity = |reason| CredentialsError::NoIdentity { path: certificate.to_owned(), reason };
    let identity = identity_of(&chain[0]).map_err(no_identity)?;
    let expires = expiry(&chain).ok_or_else(|| CredentialsError::Content {
        path: certificate.to_owned(),
        wanted: "a certificate",
        reason: "it does not say until when it is valid".to_owned(),
    })?;
    Ok((identity, expires))
}

/// When the first of these is valid no more.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    chain.iter().map(|certificate| der::expires(certificate)).min().flatten()
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
    certificates_in(&read(path)?, path, wanted)
}

fn certificates_in(
    text: &[u8],
    path: &Path,
    wanted: &'static str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let content = |reason: String| CredentialsError::Content { path: path.to_owned(), wanted, reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let path = files.certificate.clone();
    let trusted = read(&files.authorities)?;
    let authority_certificates = certificates_in(&trusted, &files.authorities, "the fleet's authorities")?;
    let algorithms = provider.signature_verification_algorithms.all;
    let revocations = Revocations::read(&trusted, &authority_certificates, algorithms)
        .map_err(|reason| CredentialsError::Revocations { path: files.authorities.clone(), reason })?;
    let mut authorities = RootCertStore::empty();
    for authority in authority_certificates {
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
    let authorities = Arc::new(authorities);
    // A part's certificate alone is looked for in the lists, and one whose authority has revoked nothing is good.
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&authorities), Arc::clone(&provider))
            .with_crls(revocations.lists())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unusable(error.to_string()))?;
    callers
        .verify_client_cert(&chain[0], &chain[1..], UnixTime::now())
        .map_err(|error| unusable(words::of_own_certificate(&error)))?;
    let expires =
        expiry(&chain).ok_or_else(|| unusable("it does not say until when it is valid".to_owned()))?;
    let nodes = WebPkiServerVerifier::builder_with_provider(authorities, Arc::clone(&provider))
        .with_crls(revocations.lists())
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let (client, server) = configurations(&provider, nodes, callers, &chain, &key)
        .map_err(|error| unusable(words::of_own_certificate(&error)))?;
    Ok(Loaded { identity, client, server, expires, revocations })
}

/// What both ends of connections are made with.
fn configurations(
    provider: &Arc<CryptoProvider>,
    nodes: Arc<WebPkiServerVerifier>,
    callers: Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
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
