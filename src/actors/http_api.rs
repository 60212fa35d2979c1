//! Serves the agent's pages on what it was handed: a TCP listener, with or without TLS, and the admin socket.
//!
//! Hears: Drain. Says: the questions in `web::Ask`, from its servers' own threads.
//! Bound: `MOST_CONNECTIONS` a listener; who comes when all are taken waits in the listener's backlog. Every connection carries one
//! request over TCP and has a time limit on each of its parts: head `HEAD_WITHIN`, body and answer in `web`, unread answer `UNREAD`.
use std::{io, net::TcpListener, os::unix::net::UnixListener, sync::Arc, time::Duration};

use actix::prelude::*;
use actix_web::{
    App, HttpServer,
    dev::{Server, ServerHandle},
    http::KeepAlive,
};

use crate::{
    clock::SharedClock,
    messages::control::Drain,
    metrics::SharedMetrics,
    os,
    web::{self, Ask, SharedState, State},
};

/// Of each listener: enough for people and scrapers, and a bound on the descriptors and memory that strangers can take.
const MOST_CONNECTIONS: usize = 256;
/// Two profiles at once are all that blocks.
const BLOCKING_THREADS: usize = 2;
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A peer that takes nothing of its answer is let go after this.
const UNREAD: Duration = Duration::from_secs(15);
/// On the socket only. Over TCP each request has a connection of its own: actix limits the time of the first head on a
/// connection, but not of later ones, so a kept connection could be held for ever.
const SOCKET_KEPT: Duration = Duration::from_secs(15);
/// Requests under way when the servers stop may take this long still.
const STOP_WITHIN: Duration = Duration::from_secs(1);

pub struct HttpApiParts {
    pub ask: Ask,
    /// Bound and listening.
    pub http: Option<TcpListener>,
    /// Made by `web::tls::server_config`; none: in the clear.
    pub tls: Option<rustls::ServerConfig>,
    /// The admin socket, bound and listening.
    pub socket: Option<UnixListener>,
    /// What `admin.token` holds.
    pub token: String,
    pub insecure_remote: bool,
    pub log: slog::Logger,
    pub metrics: SharedMetrics,
    pub clock: SharedClock,
}

pub struct HttpApi {
    /// Kept, and cloned for each life: the address stays bound between two of them.
    http: Option<TcpListener>,
    tls: Option<rustls::ServerConfig>,
    socket: Option<UnixListener>,
    state: SharedState,
    /// The servers of this life.
    serving: Vec<(ServerHandle, SpawnHandle)>,
    drained: bool,
}

impl HttpApi {
    pub fn new(parts: HttpApiParts) -> Self {
        Self {
            http: parts.http,
            tls: parts.tls,
            socket: parts.socket,
            state: Arc::new(State {
                ask: parts.ask,
                token: parts.token,
                insecure_remote: parts.insecure_remote,
                sessions: Default::default(),
                log: parts.log,
                metrics: parts.metrics,
                clock: parts.clock,
            }),
            serving: Vec::new(),
            drained: false,
        }
    }

    fn servers(&self) -> io::Result<Vec<Server>> {
        let mut bound = Vec::new();
        if let Some(listener) = &self.http {
            bound.push(Bound::Http(listener.try_clone()?, self.tls.clone().map(Box::new)));
        }
        if let Some(listener) = &self.socket {
            bound.push(Bound::Socket(listener.try_clone()?));
        }
        bound
            .into_iter()
            .map(|bound| serve(bound, self.state.clone()))
            .collect()
    }
}

impl Actor for HttpApi {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.serving.clear(); // the former life's ended with its context
        if self.drained {
            return;
        }
        let servers = match self.servers() {
            Ok(servers) => servers,
            Err(error) => {
                slog::error!(self.state.log, "could not serve the agent's pages"; "error" => %error);
                return ctx.stop(); // a fall: tried again by who supervises
            }
        };
        for server in servers {
            let handle = server.handle();
            let ended = server.into_actor(self).map(|end, api, ctx| {
                if !api.drained {
                    slog::error!(api.state.log, "an HTTP server ended by itself"; "end" => ?end);
                    ctx.stop();
                }
            });
            self.serving.push((handle, ctx.spawn(ended)));
        }
    }
}
impl Supervised for HttpApi {}

impl Handler<Drain> for HttpApi {
    type Result = ResponseActFuture<Self, ()>;
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.drained = true;
        // Nobody waits in the backlog of a listener that none will serve: from here on, connecting is refused.
        (self.http, self.socket) = (None, None);
        let (handles, tasks): (Vec<_>, Vec<_>) = self.serving.drain(..).unzip();
        let stopped = futures_util::future::join_all(handles.iter().map(|handle| handle.stop(true)));
        let stopped = tokio::time::timeout(STOP_WITHIN, stopped);
        Box::pin(stopped.into_actor(self).map(move |_, _, ctx| {
            // What is not done by now ends here: a server that is dropped closes its connections.
            for task in tasks {
                ctx.cancel_future(task);
            }
        }))
    }
}

/// What one server listens on.
enum Bound {
    Http(TcpListener, Option<Box<rustls::ServerConfig>>),
    Socket(UnixListener),
}

fn serve(bound: Bound, state: SharedState) -> io::Result<Server> {
    let (thread, tls, kept) = match &bound {
        Bound::Http(listener, tls) => {
            os::give_up_unread_after(listener, UNREAD)?;
            listener.set_nonblocking(true)?;
            ("http", tls.is_some(), KeepAlive::Disabled)
        }
        Bound::Socket(listener) => {
            listener.set_nonblocking(true)?;
            ("admin-socket", false, KeepAlive::Timeout(SOCKET_KEPT))
        }
    };
    let server = HttpServer::new(move || {
        os::name_thread(thread); // made once, on the worker's own thread
        App::new().configure(web::routes(state.clone()))
    })
    .disable_signals()
    .workers(1) // the pages are small, and the host is there for others
    .worker_max_blocking_threads(BLOCKING_THREADS)
    .max_connections(MOST_CONNECTIONS)
    .client_request_timeout(HEAD_WITHIN)
    .keep_alive(kept)
    .shutdown_timeout(STOP_WITHIN.as_secs())
    .on_connect(web::guard::note_way(tls));
    let server = match bound {
        Bound::Http(listener, None) => server.listen(listener)?,
        Bound::Http(listener, Some(tls)) => server.listen_rustls_0_23(listener, *tls)?,
        Bound::Socket(listener) => server.listen_uds(listener)?,
    };
    Ok(server.run())
}
