//! What time etcd thinks it is: the `Date` of an HTTP answer, over the same TLS as all else.
use std::sync::Arc;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;

use super::etcd::Tls;

/// Of the first endpoint that answers.
pub async fn of_any(endpoints: &[String], tls: Option<&Tls>) -> Result<jiff::Timestamp, String> {
    let mut said = vec![];
    for endpoint in endpoints {
        match of(endpoint, tls).await {
            Ok(wall) => return Ok(wall),
            Err(error) => said.push(format!("{endpoint}: {error}")),
        }
    }
    Err(format!("no endpoint tells the time: {}", said.join("; ")))
}
async fn of(endpoint: &str, tls: Option<&Tls>) -> Result<jiff::Timestamp, String> {
    let bare = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"));
    let address = bare.unwrap_or(endpoint);
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let date = match tls {
        None => date(TokioIo::new(stream), address).await?,
        Some(tls) => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            let host = host.trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config(tls)?));
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| error.to_string())?;
            date(TokioIo::new(stream), address).await?
        }
    };
    let parsed = jiff::fmt::rfc2822::parse(&date).map_err(|error| format!("Date {date}: {error}"))?;
    Ok(parsed.timestamp())
}
async fn date<S>(stream: S, host: &str) -> Result<String, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<&[u8]>>(stream)
        .await
        .map_err(|error| error.to_string())?;
    let request = hyper::Request::get("/version")
        .header("host", host)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    // The connection moves only while it is polled, and ends with this function.
    tokio::select! {
        biased;
        answer = sender.send_request(request) => {
            let answer = answer.map_err(|error| error.to_string())?;
            let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
            date.map(str::to_owned).ok_or_else(|| "an answer without a date".to_owned())
        }
        ended = connection => Err(ended.err().map_or("the connection ended".to_owned(), |error| error.to_string())),
    }
}
fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &tls.ca {
        Some(path) => {
            let certs = CertificateDer::pem_file_iter(path).map_err(|error| format!("{}: {error}", path.display()))?;
            roots.add_parsable_certificates(certs.flatten());
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match &tls.cert_and_key {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let certs = CertificateDer::pem_file_iter(cert)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| format!("{}: {error}", cert.display()))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            builder
                .with_client_auth_cert(certs, key)
                .map_err(|error| error.to_string())
        }
    }
}

/// What this system trusts, as PEM.
pub fn system_roots() -> Vec<u8> {
    use base64::Engine as _;
    let mut pem = String::new();
    for cert in rustls_native_certs::load_native_certs().certs {
        let text = base64::engine::general_purpose::STANDARD.encode(&cert);
        pem.push_str(&format!(
            "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
        ));
    }
    pem.into_bytes()
}
