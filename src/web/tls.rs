//! `[http.tls] cert, key`: PEM files to what the listener speaks.
use std::{path::Path, sync::Arc};

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Reads a certificate chain and its key. Clients need no certificate: they show the token.
pub fn server_config(cert: &Path, key: &Path) -> Result<ServerConfig, String> {
    let unreadable =
        |path: &Path, error: rustls_pki_types::pem::Error| format!("could not read {} as PEM: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(cert, error))?;
    if chain.is_empty() {
        return Err(format!(
            "found no certificate in {}, accepted: PEM, the host's own first",
            cert.display()
        ));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
    // The provider by name: it does not depend on what was installed for the process before.
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| format!("could not use {} with {}: {error}", cert.display(), key.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_pair_and_names_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key, empty) = (
            dir.path().join("cert"),
            dir.path().join("key"),
            dir.path().join("empty"),
        );
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&empty, "").unwrap();
        server_config(&cert, &key).unwrap();

        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other_key = dir.path().join("other");
        std::fs::write(&other_key, other.signing_key.serialize_pem()).unwrap();
        for (cert, key, part) in [
            (&dir.path().join("none"), &key, "none as PEM"),
            (&empty, &key, "no certificate in"),
            (&cert, &empty, "empty as PEM"),
            (&cert, &other_key, "could not use"),
        ] {
            let error = server_config(cert, key).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
