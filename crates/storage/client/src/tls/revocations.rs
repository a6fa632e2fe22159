//! The certificates that an authority has taken back: revocation lists (RFC 5280, section 5) in the file of authorities, one of
//! each authority at most.
//!
//! A list's own end (`nextUpdate`) is not looked at. A list that ran out says at least as much as none, and the day it runs out
//! must not be the day on which every part of a fleet refuses every other.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use super::der;

/// The lists that count.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    lists: Vec<CertificateRevocationListDer<'static>>,
    parsed: Vec<CertRevocationList<'static>>,
}

impl Revocations {
    /// Reads the lists in the text of the file of authorities; none is no error.
    ///
    /// # Errors
    /// Says why, when a list is damaged, of no authority in the file, the second one of its authority, or of a part of its certificates.
    /// Leaving it out would let in whom it was made to keep out.
    pub(super) fn read(
        text: &[u8],
        authorities: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<Revocations, String> {
        let mut found = Revocations::default();
        for list in CertificateRevocationListDer::pem_slice_iter(text) {
            let list = list.map_err(|error| format!("it is damaged: {error}"))?;
            let parsed = OwnedCertRevocationList::from_der(&list)
                .map_err(|error| format!("it is damaged: {error}"))?;
            let parsed = CertRevocationList::from(parsed);
            if parsed.issuing_distribution_point().is_some() {
                return Err("it is of some of an authority's certificates alone".to_owned());
            }
            if !authorities.iter().any(|authority| has_signed(authority, &list, &parsed, algorithms)) {
                return Err("no authority in the file has signed it, or it was changed since".to_owned());
            }
            if found.parsed.iter().any(|other| other.issuer() == parsed.issuer()) {
                return Err("there are two of one authority; keep the newer one alone".to_owned());
            }
            found.lists.push(list);
            found.parsed.push(parsed);
        }
        Ok(found)
    }

    /// The lists, for those who judge chains.
    pub(super) fn lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.clone()
    }

    /// Whether the certificate was revoked. Its chain has been judged before.
    pub(super) fn revoke(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
        self.parsed.iter().any(|list| {
            // A list whose entries cannot be read was refused when it came.
            list.issuer() == certificate.issuer()
                && !matches!(list.find_serial(certificate.serial()), Ok(None))
        })
    }
}

fn has_signed(
    authority: &CertificateDer<'_>,
    list: &CertificateRevocationListDer<'_>,
    parsed: &CertRevocationList<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let (Ok(authority), Some(signed)) = (EndEntityCert::try_from(authority), der::signed(list)) else {
        return false;
    };
    authority.subject() == parsed.issuer()
        && algorithms
            .iter()
            .filter(|algorithm| algorithm.signature_alg_id().as_ref() == signed.algorithm)
            .any(|algorithm| authority.verify_signature(*algorithm, signed.message, signed.signature).is_ok())
}
