//! Certificates of both sides: TLS 1.3 and nothing older, and each side demands one that its CA has signed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};

/// Files in PEM. Both sides need all three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The certificate of the authority that signed the peer's.
    pub ca: PathBuf,
    /// This side's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// The key of this side's certificate.
    pub key: PathBuf,
}

fn file(what: &str, path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!(
        "the {what} in {} cannot be used: {error}; give a file in PEM that this user may read",
        path.display()
    ))
}

impl Credentials {
    fn roots(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("certificate of the CA", &self.ca)? {
            roots.add(certificate).map_err(|error| file("certificate of the CA", &self.ca, &error))?;
        }
        Ok(roots)
    }

    fn own(&self) -> io::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let certificate = certificates("certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| file("key", &self.key, &error))?;
        Ok((certificate, key))
    }

    /// For the side that connects.
    pub(crate) fn client(&self) -> io::Result<Arc<ClientConfig>> {
        let (certificate, key) = self.own()?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificate, key)
            .map_err(|error| file("certificate with its key", &self.certificate, &error))?;
        Ok(Arc::new(config))
    }

    /// For the side that listens.
    pub(crate) fn server(&self) -> io::Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (certificate, key) = self.own()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
            .build()
            .map_err(|error| file("certificate of the CA", &self.ca, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificate, key)
            .map_err(|error| file("certificate with its key", &self.certificate, &error))?;
        // A session that is taken up again shows no certificate: each connection shows one.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

fn certificates(what: &str, path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match all {
        Ok(all) if all.is_empty() => Err(file(what, path, &"there is no certificate in it")),
        Ok(all) => Ok(all),
        Err(error) => Err(file(what, path, &error)),
    }
}

/// What went wrong, and what helps.
pub(crate) fn explain(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    use rustls::Error;
    const ONE_CA: &str =
        "use certificates on both sides that were signed by the CA that the other side was given";
    let words = match error {
        Error::NoCertificatesPresented => format!("the peer shows no certificate: {ONE_CA}"),
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the peer's certificate has expired: issue a new one for it, or set this side's clock".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "the peer's certificate is not valid yet: look at the clocks of both sides".to_owned()
        }
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            format!("the peer's certificate was signed by another CA: {ONE_CA}")
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the peer's certificate is for another name: connect to the name that is in it, or issue one for this name"
                .to_owned()
        }
        Error::InvalidCertificate(other) => {
            format!("the peer's certificate is refused ({other}): issue another one for it")
        }
        Error::AlertReceived(Alert::CertificateExpired) => {
            "the peer says that the certificate of this side has expired: issue a new one".to_owned()
        }
        Error::AlertReceived(Alert::CertificateRequired) => {
            format!("the peer demands a certificate, and this side has shown none: {ONE_CA}")
        }
        Error::AlertReceived(
            Alert::UnknownCA | Alert::BadCertificate | Alert::DecryptError | Alert::CertificateUnknown,
        ) => format!("the peer refuses the certificate of this side: {ONE_CA}"),
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            "the peer does not speak TLS 1.3: nothing older is spoken here; upgrade it".to_owned()
        }
        Error::InvalidMessage(_) => {
            "the peer does not speak TLS: use an address that begins with tls: on both sides".to_owned()
        }
        other => format!("TLS failed ({other}): look at what the peer says"),
    };
    format!("{words} [{error}]")
}
