//! Who may ask what. Open pages are open to all; everything else wants the token (or a session that was traded for it) and a way
//! on which it cannot be overheard. The admin socket needs neither: the kernel says who is there.
//!
//! A token counts in the header `Authorization` only: an address is logged, bookmarked and sent on. Pages that a browser is lured
//! to (DNS rebinding, cross-site requests) get nothing: they know no token, the cookie is bound to its host and SameSite, and
//! writes want a header that no form can send; so the `Host` header needs no check.
use std::{
    any::Any,
    net::IpAddr,
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};

use actix_web::{
    Error, HttpMessage, HttpRequest,
    body::{BodySize, BoxBody, MessageBody},
    dev::{Extensions, Payload, ServiceRequest, ServiceResponse},
    http::{Method, StatusCode, header},
    middleware::Next,
    rt::net::{TcpStream, UnixStream},
    web::{Bytes, Data},
};
use subtle::ConstantTimeEq;

use crate::{
    os,
    web::{State, problem::Problem, session},
};

/// The largest request body, in bytes.
pub const LARGEST_BODY: usize = 64 << 10;

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The admin socket; the user at the other end, where the kernel says so.
    Socket(Option<u32>),
    Loopback,
    Tls,
    /// In the clear, from elsewhere.
    Plain,
}
impl Way {
    fn of_tcp(tls: bool, peer: Option<IpAddr>) -> Self {
        match peer {
            _ if tls => Self::Tls,
            Some(ip) if ip.to_canonical().is_loopback() => Self::Loopback,
            _ => Self::Plain,
        }
    }
    pub fn is_tls(self) -> bool {
        self == Self::Tls
    }
}
/// For `HttpServer::on_connect`: notes the way before the first byte is read.
pub fn note_way(tls: bool) -> impl Fn(&dyn Any, &mut Extensions) + Send + Sync + Clone {
    move |io, notes| {
        notes.insert(match io.downcast_ref::<UnixStream>() {
            Some(socket) => Way::Socket(os::peer_uid(socket).ok()),
            None => {
                let peer = io.downcast_ref::<TcpStream>().and_then(|tcp| tcp.peer_addr().ok());
                Way::of_tcp(tls, peer.map(|address| address.ip()))
            }
        });
    }
}
pub fn way(req: &HttpRequest) -> Way {
    // Nothing noted would be a connection that nobody classified: the least trusted then.
    req.conn_data::<Way>().copied().unwrap_or(Way::Plain)
}

/// What a request shows for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Nothing,
    Wrong,
    Token,
    Session,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Unknown(Shown),
    PlainRemote,
    NoAgentHeader,
    OtherUser,
}

/// The rules, apart from HTTP. `write`: any method but GET and HEAD. `x_agent`: it carries the header, whatever its value.
pub fn admit(way: Way, shown: Shown, write: bool, x_agent: bool, insecure_remote: bool) -> Result<(), Refusal> {
    match (way, shown) {
        (Way::Socket(_), _) => return may_use_socket(way),
        (_, Shown::Nothing | Shown::Wrong) => return Err(Refusal::Unknown(shown)),
        (Way::Plain, _) if !insecure_remote => return Err(Refusal::PlainRemote),
        (Way::Plain | Way::Loopback | Way::Tls, Shown::Token | Shown::Session) => {}
    }
    if write && !x_agent {
        return Err(Refusal::NoAgentHeader);
    }
    Ok(())
}
/// Only root and who runs the agent, whatever the socket's mode may have become.
fn may_use_socket(way: Way) -> Result<(), Refusal> {
    match way {
        Way::Socket(Some(uid)) if uid == 0 || uid == os::own_uid() => Ok(()),
        Way::Socket(_) => Err(Refusal::OtherUser),
        _ => Ok(()),
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(shown) => Problem::new(
                StatusCode::UNAUTHORIZED,
                match shown {
                    Shown::Nothing => {
                        "this page needs the header `Authorization: Bearer TOKEN`; the token stands in admin.token in the data dir"
                    }
                    _ => "that token or session is not valid (any more)",
                },
            )
            .with(header::WWW_AUTHENTICATE, "Bearer realm=\"agent\""),
            Refusal::PlainRemote => Problem::new(
                StatusCode::FORBIDDEN,
                "over an unencrypted connection from another host this page is closed: use the socket, loopback or TLS ([http.tls]), \
                 or set http.insecure_remote; the token was just sent in the clear",
            ),
            Refusal::NoAgentHeader => {
                Problem::new(StatusCode::FORBIDDEN, "a request that changes something needs the header X-Agent, with any value")
            }
            Refusal::OtherUser => {
                Problem::new(StatusCode::FORBIDDEN, "this socket is for root and the user who runs the agent")
            }
        }
    }
}

/// Equal in a time that does not depend on where they differ. An empty secret equals nothing.
pub fn same_secret(secret: &str, shown: &str) -> bool {
    !secret.is_empty() && bool::from(secret.as_bytes().ct_eq(shown.as_bytes()))
}

/// The token of `Authorization: Bearer TOKEN`.
pub fn bearer(req: &HttpRequest) -> Option<&str> {
    let (scheme, token) = req
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn shown(req: &HttpRequest, state: &State) -> Shown {
    if let Some(token) = bearer(req) {
        return if same_secret(&state.token, token) {
            Shown::Token
        } else {
            Shown::Wrong
        };
    }
    match session::id(req) {
        Some(id) if state.sessions.knows(id, state.clock.steady()) => Shown::Session,
        Some(_) => Shown::Wrong,
        None if req.headers().contains_key(header::AUTHORIZATION) => Shown::Wrong,
        None => Shown::Nothing,
    }
}

pub fn is_write(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

/// Around all that is not open.
pub async fn members_only(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, Error> {
    let (way, write) = (way(req.request()), is_write(req.method()));
    let x_agent = req.headers().contains_key("x-agent");
    let Some(state) = req.app_data::<Data<State>>().cloned() else {
        return Ok(req.error_response(Problem::unavailable("the agent's pages are not set up")));
    };
    let peer = || req.peer_addr().map_or("socket".to_owned(), |peer| peer.to_string());
    let admitted = admit(
        way,
        shown(req.request(), &state),
        write,
        x_agent,
        state.insecure_remote.load(Relaxed),
    );
    if let Err(refusal) = admitted {
        slog::debug!(state.log, "request refused"; "path" => req.path(), "why" => ?refusal, "peer" => peer());
        return Ok(req.error_response(Problem::from(refusal)));
    }
    if write {
        slog::info!(state.log, "order received"; "method" => %req.method(), "path" => req.path(), "peer" => peer());
    }
    Ok(next.call(req).await?.map_into_boxed_body())
}

/// Around everything: who is at the socket, and how much may come in.
pub async fn bounds(mut req: ServiceRequest, next: Next<impl MessageBody + 'static>) -> Result<ServiceResponse, Error> {
    let way = way(req.request());
    if let Err(refusal) = may_use_socket(way) {
        return Ok(req.error_response(Problem::from(refusal)));
    }
    let length = req.headers().get(header::CONTENT_LENGTH);
    let refused = if length.is_some_and(|n| {
        n.to_str()
            .ok()
            .and_then(|n| n.parse().ok())
            .is_none_or(|n: usize| n > LARGEST_BODY)
    }) {
        Some(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a request body may have {LARGEST_BODY} bytes at most"),
        ))
    } else if req.headers().contains_key(header::TRANSFER_ENCODING) {
        Some(Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "a request body needs the header Content-Length; chunked bodies are not read",
        ))
    } else {
        None
    };
    let Some(problem) = refused else {
        return Ok(next.call(req).await?.map_into_boxed_body());
    };
    let unread = req.take_payload();
    Ok(req
        .error_response(problem)
        .map_body(|_, body| BoxBody::new(Holding { body, _unread: unread })))
}

/// An answer that keeps the request's body until it is sent. actix reads a chunked body that nobody holds any more to its end,
/// however long that takes, and keeps the connection open for it; one that is still held at the end makes it close.
struct Holding {
    body: BoxBody,
    _unread: Payload,
}
impl MessageBody for Holding {
    type Error = <BoxBody as MessageBody>::Error;
    fn size(&self) -> BodySize {
        self.body.size()
    }
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        use Refusal::*;
        use Shown::*;
        let own = Way::Socket(Some(os::own_uid()));
        let root = Way::Socket(Some(0));
        let other = Way::Socket(Some(os::own_uid() + 4711));
        let nobody_knows = Way::Socket(None);
        let (read, write) = (false, true);
        // way, shown, write, X-Agent, insecure_remote
        for (case, wanted) in [
            ((own, Nothing, write, false, false), Ok(())),
            ((own, Wrong, read, false, false), Ok(())),
            ((root, Nothing, write, false, false), Ok(())),
            ((other, Token, read, true, true), Err(OtherUser)),
            ((nobody_knows, Token, read, true, true), Err(OtherUser)),
            ((Way::Loopback, Nothing, read, true, false), Err(Unknown(Nothing))),
            ((Way::Loopback, Wrong, read, true, false), Err(Unknown(Wrong))),
            ((Way::Loopback, Token, read, false, false), Ok(())),
            ((Way::Loopback, Session, read, false, false), Ok(())),
            ((Way::Loopback, Token, write, false, false), Err(NoAgentHeader)),
            ((Way::Loopback, Session, write, false, false), Err(NoAgentHeader)),
            ((Way::Loopback, Session, write, true, false), Ok(())),
            ((Way::Tls, Token, write, true, false), Ok(())),
            ((Way::Tls, Nothing, read, true, true), Err(Unknown(Nothing))),
            ((Way::Plain, Nothing, read, true, false), Err(Unknown(Nothing))),
            ((Way::Plain, Nothing, read, true, true), Err(Unknown(Nothing))),
            ((Way::Plain, Wrong, read, true, false), Err(Unknown(Wrong))),
            ((Way::Plain, Token, read, true, false), Err(PlainRemote)),
            ((Way::Plain, Session, write, true, false), Err(PlainRemote)),
            ((Way::Plain, Token, read, false, true), Ok(())),
            ((Way::Plain, Token, write, false, true), Err(NoAgentHeader)),
            ((Way::Plain, Session, write, true, true), Ok(())),
        ] {
            let (way, shown, write, x_agent, insecure_remote) = case;
            assert_eq!(admit(way, shown, write, x_agent, insecure_remote), wanted, "{case:?}");
        }
    }
    #[test]
    fn ways() {
        for (tls, peer, wanted) in [
            (false, Some("127.0.0.1"), Way::Loopback),
            (false, Some("127.8.9.1"), Way::Loopback),
            (false, Some("::1"), Way::Loopback),
            (false, Some("::ffff:127.0.0.1"), Way::Loopback),
            (false, Some("::ffff:10.0.0.1"), Way::Plain),
            (false, Some("10.0.0.1"), Way::Plain),
            (false, Some("fe80::1"), Way::Plain),
            (false, None, Way::Plain),
            (true, Some("10.0.0.1"), Way::Tls),
            (true, None, Way::Tls),
        ] {
            let peer = peer.map(|ip: &str| ip.parse().unwrap());
            assert_eq!(Way::of_tcp(tls, peer), wanted, "{tls} {peer:?}");
        }
    }
    #[test]
    fn secrets() {
        assert!(same_secret("abc", "abc"));
        for (secret, shown) in [
            ("abc", "abd"),
            ("abc", "ab"),
            ("abc", "abcd"),
            ("abc", ""),
            ("", ""),
            ("", "a"),
        ] {
            assert!(!same_secret(secret, shown), "{secret:?} {shown:?}");
        }
    }
}
