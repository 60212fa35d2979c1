//! The far side of a test: listeners, and TLS with certificates of their own.
use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, bind, listen, recv, setsockopt, socket, sockopt,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// Nobody waits longer than this for anything.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}
/// One whose connections hold few bytes that nobody has read.
pub fn small_listener() -> (TcpListener, String) {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::RcvBuf, &4096).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&fd, Backlog::new(16).unwrap()).unwrap();
    let listener = TcpListener::from(fd);
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}
/// What its kernel has acknowledged and nobody has read; nothing is taken away.
pub fn peek(socket: &TcpStream) -> Vec<u8> {
    let mut into = vec![0; 1 << 20];
    match recv(
        socket.as_raw_fd(),
        &mut into,
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(n) => into.truncate(n),
        Err(nix::errno::Errno::EAGAIN) => into.clear(),
        Err(error) => panic!("{error}"),
    }
    into
}
pub fn read_exactly(socket: &mut impl Read, bytes: usize) -> Vec<u8> {
    let mut into = vec![0; bytes];
    socket.read_exact(&mut into).unwrap();
    into
}
/// All until the other side ends, orderly or not.
pub fn read_all(socket: &mut impl Read) -> Vec<u8> {
    let (mut all, mut some) = (vec![], [0; 65536]);
    loop {
        match socket.read(&mut some) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                ) =>
            {
                return all;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
/// Without what stands behind the last line end: half a line.
pub fn whole_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    &bytes[..end]
}

/// An authority, and what it issues, as PEM files in a directory.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}
impl Authority {
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }
    pub fn pem(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
    pub fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        std::fs::write(&pair.cert, cert.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
    /// A server with that pair; it asks for certificates of these clients' authority.
    pub fn server(pair: &Pair, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_file(authority.pem()).unwrap())
                    .unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}
pub type Session = rustls::StreamOwned<ServerConnection, TcpStream>;
/// The server's side of a handshake; the error is why there is no session.
pub fn secure(socket: TcpStream, config: &Arc<ServerConfig>) -> Result<Session, String> {
    let session = ServerConnection::new(config.clone()).unwrap();
    let mut stream = Session::new(session, socket);
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            let _ = stream.flush(); // the alert
            return Err(error.to_string());
        }
    }
    stream.flush().unwrap();
    Ok(stream)
}
