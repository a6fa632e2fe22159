//! What a person is told when TLS fails: what is wrong, with whose certificate, and what to do.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

const RENEW: &str = "renew it with `borealis fleet certificate`";

/// What is wrong with a certificate.
fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!("it has expired; {RENEW}"),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet; compare the clocks of the hosts".to_owned()
        }
        CertificateError::Revoked => {
            "it was revoked (`borealis fleet revoke`); a part that is to go on needs a new one, of `borealis fleet certificate`"
                .to_owned()
        }
        CertificateError::UnknownIssuer => {
            "no authority that is trusted here has signed it: it is of another fleet, or of an authority that was \
             retired; put that authority into the file of authorities, or renew the certificate with \
             `borealis fleet certificate`"
                .to_owned()
        }
        // As when two authorities have one name, the one that was trusted before the other fleet's.
        CertificateError::BadSignature => {
            "it was not signed by the authority it names; it is of another fleet".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is not valid for the host that was called; renew it with `borealis fleet certificate --host` and that \
             name or address"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not meant for this side of a connection: only nodes are called".to_owned()
        }
        other => other.to_string(),
    }
}

/// Why a part's own certificate is of no use to it.
pub(super) fn of_own_certificate(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::InconsistentKeys(_) => "the key belongs to another certificate".to_owned(),
        other => other.to_string(),
    }
}

/// Why a connection failed.
pub(super) fn of_connection(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => {
            format!("the other side's certificate is refused: {}", of_certificate(error))
        }
        Error::NoCertificatesPresented => "the other side has shown no certificate".to_owned(),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "what came is not TLS; only other parts of the fleet may call here, with their certificates"
            .to_owned(),
        Error::AlertReceived(alert) => of_alert(*alert),
        other => format!("TLS failed: {other}"),
    }
}

/// What the other side's last word means.
fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it does not trust the authority that signed it: this process is of another fleet, or the authority is not \
             in that side's file of authorities"
                .to_owned()
        }
        AlertDescription::CertificateExpired => {
            format!("it has expired by that side's clock, or is not valid yet; {RENEW}")
        }
        AlertDescription::CertificateRevoked => {
            "it was revoked; a part that is to go on needs a new one, of `borealis fleet certificate`".to_owned()
        }
        AlertDescription::CertificateRequired => "it asks for one, and none was shown".to_owned(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => format!("its last word was {alert:?}"),
        other => return format!("the other side ended TLS with {other:?}; its log may say why"),
    };
    format!("the other side refused this process's certificate: {why}")
}
