//! TLS as a client, for any plugin: `tls = { ca, cert, key, server_name }`, and what went wrong in words. There is no way to leave the
//! peer's certificate unchecked: whoever has a private one names its authority in `ca`.
use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde::Deserialize;

use super::BadValue;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// Certificates, PEM: who may vouch for the peer. Without it the system's roots.
    ca: Option<PathBuf>,
    /// Our own certificate, PEM, and what it was issued by behind it.
    cert: Option<PathBuf>,
    /// Its private key, PEM.
    key: Option<PathBuf>,
    /// What the peer's certificate must be for, if that is not the host that was dialled.
    server_name: Option<String>,
}

impl ClientTls {
    /// What can be said without looking at the files.
    pub fn check(&self) -> Result<(), BadValue> {
        for (key, path) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                let message = format!("found `{}`, accepted: an absolute path", path.display());
                return Err(BadValue::new(key, message));
            }
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => return Err(BadValue::new("key", "missing, required with `cert`")),
            (None, Some(_)) => return Err(BadValue::new("cert", "missing, required with `key`")),
            _ => {}
        }
        if let Some(name) = &self.server_name {
            self.name_of(name)
                .map_err(|message| BadValue::new("server_name", message))?;
        }
        Ok(())
    }
    /// What the certificate of that host must be for.
    pub fn name_of(&self, host: &str) -> Result<ServerName<'static>, String> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned())
            .map_err(|_| format!("found `{name}`, accepted: a DNS name or an IP address"))
    }
    /// Reads the files: they may have been renewed since the last time.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| format!("could not use {}: {}", path.display(), words(&error)))?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                if roots.add_parsable_certificates(found.certs).0 == 0 {
                    return Err("found no roots on this system, accepted: a file in tls.ca".into());
                }
            }
        }
        // The provider by name: it does not depend on what was installed for the process before.
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| words(&error))?
            .with_root_certificates(roots);
        let config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("could not read {} as PEM: {error}", key.display()))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| format!("could not use {} with {}: {error}", cert.display(), key.display()))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}
fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("could not read {} as PEM: {error}", path.display()))?;
    match chain.is_empty() {
        true => Err(format!("found no certificate in {}, accepted: PEM", path.display())),
        false => Ok(chain),
    }
}

/// A session that stands, for people: `TLSv1_3, TLS13_AES_256_GCM_SHA384`.
pub fn about(session: &ClientConnection) -> String {
    let version = session.protocol_version().map(|v| format!("{v:?}"));
    let suite = session.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite()));
    [version, suite].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
/// Why a session did not come about, or ended.
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the peer's certificate is from an unknown issuer, accepted: one that tls.ca, or the system, vouches for"
                .into()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("the peer's certificate has expired{}", behind(error))
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("the peer's certificate is not valid yet{}", behind(error))
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("the peer's certificate is for another name{}", behind(error)),
        Error::AlertReceived(alert) => format!("the peer refused: {alert:?}"),
        Error::InvalidMessage(_) => format!("the peer does not seem to speak TLS: {error}"),
        other => other.to_string(),
    }
}
/// The details, if there are any.
fn behind(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(
            detail @ (CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::NotValidForNameContext { .. }),
        ) => format!(": {detail}"),
        _ => String::new(),
    }
}
