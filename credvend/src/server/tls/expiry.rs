//! When certificates and revocation lists end, and from when an administrator is warned of it.

use std::path::Path;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use credd_protocol::credentials::rfc3339_z;

/// A certificate that ends sooner is warned of. The shipped alert has the same number.
const CERTIFICATE_WARNING: Duration = Duration::days(14);

/// A revocation list that ends sooner is warned of, unless it is made for a short time: then during the last third of it.
const LIST_WARNING: Duration = Duration::days(7);

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiring {
    /// The server's certificate.
    Server,
    /// An authority of `client-ca`.
    ClientCa,
    /// A list of `client-crl`.
    ClientCrl,
}

/// A file's certificate or list, and its end.
#[derive(Debug, Clone)]
pub struct Expiry {
    /// What it is.
    pub what: Expiring,
    /// When it ends.
    pub at: OffsetDateTime,
    /// From when that is warned of.
    pub warn_from: OffsetDateTime,
    path: String,
}

impl Expiry {
    /// Of a certificate; `None` if it does not say.
    pub(super) fn of_certificate(what: Expiring, path: &Path, certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(certificate).ok()?;
        let at = OffsetDateTime::from_unix_timestamp(read.validity().not_after.timestamp()).ok()?;
        Some(Expiry { what, at, warn_from: at - CERTIFICATE_WARNING, path: path.display().to_string() })
    }

    /// Of a revocation list.
    ///
    /// # Errors
    /// It is damaged, or has no `nextUpdate`.
    pub(super) fn of_list(path: &Path, list: &CertificateRevocationListDer<'_>) -> Result<Self, &'static str> {
        let (_, read) = CertificateRevocationList::from_der(list).map_err(|_| "holds a damaged CRL")?;
        let next = read.next_update().ok_or("holds a CRL without nextUpdate")?;
        let time =
            |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| "holds a CRL with an impossible time");
        let (at, made) = (time(next.timestamp())?, time(read.last_update().timestamp())?);
        let warning = LIST_WARNING.min((at - made).max(Duration::ZERO) / 3);
        Ok(Expiry { what: Expiring::ClientCrl, at, warn_from: at - warning, path: path.display().to_string() })
    }

    /// What an administrator should know; nothing while there is time enough.
    pub fn warning(&self, now: OffsetDateTime) -> Option<String> {
        if now < self.warn_from {
            return None;
        }
        let (path, at) = (&self.path, rfc3339_z::format(self.at));
        let (name, then) = match self.what {
            Expiring::Server => ("the server's certificate", "nodes and heads that do not pin it refuse it"),
            Expiring::ClientCa => ("an authority of client-ca", "every client certificate of it is refused"),
            Expiring::ClientCrl => ("a list of client-crl", "every client certificate of its authority is refused"),
        };
        Some(if now < self.at {
            format!("{name} in {path} ends at {at}: then {then}; replace it and `systemctl reload credvend`")
        } else {
            format!("{name} in {path} has ended at {at}: {then}; replace it and `systemctl reload credvend`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};

    /// A list that is made for so long and ends at the epoch.
    fn list(validity: Duration) -> Expiry {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let list = rcgen::CertificateRevocationListParams {
            this_update: OffsetDateTime::UNIX_EPOCH - validity,
            next_update: OffsetDateTime::UNIX_EPOCH,
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        Expiry::of_list(Path::new("/crl"), list.signed_by(&ca).unwrap().der()).unwrap()
    }

    #[test]
    fn a_list_for_a_short_time_is_warned_of_in_its_last_third() {
        let warned = |validity| OffsetDateTime::UNIX_EPOCH - list(validity).warn_from;
        assert_eq!(warned(Duration::days(365)), Duration::days(7));
        assert_eq!(warned(Duration::days(30)), Duration::days(7));
        assert_eq!(warned(Duration::days(3)), Duration::days(1));
        assert_eq!(warned(Duration::hours(3)), Duration::hours(1));
    }

    #[test]
    fn a_warning_says_whether_it_is_too_late() {
        let (list, end) = (list(Duration::days(30)), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(list.warning(end - Duration::days(8)), None);
        let soon = list.warning(end - Duration::days(7)).unwrap();
        assert!(soon.contains("a list of client-crl in /crl ends at 1970-01-01T00:00:00Z: then every"), "{soon}");
        let over = list.warning(end).unwrap();
        assert!(over.contains("has ended at 1970-01-01T00:00:00Z: every"), "{over}");
    }
}
