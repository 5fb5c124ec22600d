//! Certificates that are made for a test.

use std::path::{Path, PathBuf};

use evenkeel_migrate::Credentials;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// Somebody who signs.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let ca = folder.join(format!("{name}.pem"));
        std::fs::write(&ca, certificate.pem()).unwrap();
        Authority { folder: folder.to_owned(), issuer: Issuer::new(params, key), ca }
    }

    /// A certificate for a host of this name, of these years.
    pub fn issue(&self, file: &str, name: &str, years: (i32, i32)) -> Credentials {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let at = |end: &str| self.folder.join(format!("{file}.{end}"));
        std::fs::write(at("crt"), certificate.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        Credentials { ca: self.ca.clone(), certificate: at("crt"), key: at("key") }
    }

    /// One that is good.
    pub fn good(&self, file: &str) -> Credentials {
        self.issue(file, "localhost", (2020, 2090))
    }
}
