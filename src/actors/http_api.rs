//! Serves the agent's pages on what it was handed: a TCP listener, with or without TLS, and the admin socket.
//!
//! Hears: HandOver (of its listener), Drain. Says: the questions in `web::Ask`, from its servers' own threads.
//! Bound: `MOST_CONNECTIONS` a listener; who comes when all are taken waits in the listener's backlog. Every connection carries one
//! request over TCP and has a time limit on each of its parts: head `HEAD_WITHIN`, body and answer in `web`, unread answer `UNREAD`.
use std::{
    io,
    net::TcpListener,
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use actix_web::{
    App, HttpServer,
    dev::{Server, ServerHandle},
    http::KeepAlive,
};

use crate::{
    clock::SharedClock,
    messages::{collect::HandOver, control::Drain},
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

/// In a reload.
pub struct Relisten {
    /// Bound and listening, or nothing at all; none: the present one stays.
    pub listener: Option<Option<TcpListener>>,
    /// Of the new listener.
    pub tls: Option<rustls::ServerConfig>,
    /// As it is shown.
    pub address: Option<String>,
    pub insecure_remote: bool,
}

pub struct HttpApi {
    /// Kept, and cloned for each life: the address stays bound between two of them.
    http: Option<TcpListener>,
    tls: Option<rustls::ServerConfig>,
    socket: Option<UnixListener>,
    state: SharedState,
    /// The servers of this life.
    serving: Vec<Serving>,
    drained: bool,
}

struct Serving {
    handle: ServerHandle,
    task: SpawnHandle,
    is_socket: bool,
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
                insecure_remote: AtomicBool::new(parts.insecure_remote),
                sessions: Default::default(),
                log: parts.log,
                metrics: parts.metrics,
                clock: parts.clock,
            }),
            serving: Vec::new(),
            drained: false,
        }
    }

    /// What is listened on; the socket, or all.
    fn servers(&self, socket_too: bool) -> io::Result<Vec<(Server, bool)>> {
        let mut servers = Vec::new();
        if let Some(listener) = &self.http {
            let bound = Bound::Http(listener.try_clone()?, self.tls.clone().map(Box::new));
            servers.push((serve(bound, self.state.clone())?, false));
        }
        if let Some(listener) = &self.socket
            && socket_too
        {
            servers.push((serve(Bound::Socket(listener.try_clone()?), self.state.clone())?, true));
        }
        Ok(servers)
    }
    fn run(&mut self, socket_too: bool, ctx: &mut Context<Self>) {
        let servers = match self.servers(socket_too) {
            Ok(servers) => servers,
            Err(error) => {
                slog::error!(self.state.log, "could not serve the agent's pages"; "error" => %error);
                return ctx.stop(); // a fall: tried again by who supervises
            }
        };
        for (server, is_socket) in servers {
            let handle = server.handle();
            let ended = server.into_actor(self).map(|end, api, ctx| {
                if !api.drained {
                    slog::error!(api.state.log, "an HTTP server ended by itself"; "end" => ?end);
                    ctx.stop();
                }
            });
            let task = ctx.spawn(ended);
            self.serving.push(Serving {
                handle,
                task,
                is_socket,
            });
        }
    }
}

impl Actor for HttpApi {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.serving.clear(); // the former life's ended with its context
        if self.drained {
            return;
        }
        self.run(true, ctx);
    }
}
impl Supervised for HttpApi {}

impl Handler<HandOver<Relisten>> for HttpApi {
    type Result = ();
    fn handle(&mut self, HandOver(slot): HandOver<Relisten>, ctx: &mut Self::Context) {
        let next = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(Relisten {
            listener,
            tls,
            insecure_remote,
            ..
        }) = next
        else {
            return;
        };
        self.state.insecure_remote.store(insecure_remote, Relaxed);
        let (Some(listener), false) = (listener, self.drained) else {
            return;
        };
        (self.http, self.tls) = (listener, tls);
        let (old, stay) = self.serving.drain(..).partition(|serving| !serving.is_socket);
        self.serving = stay;
        for Serving { handle, task, .. } in old {
            // Its end is no fall any more; requests under way, the order to reload too, have their time.
            ctx.cancel_future(task);
            actix_rt::spawn(async move {
                let _ = tokio::time::timeout(STOP_WITHIN, handle.stop(true)).await;
            });
        }
        self.run(false, ctx);
    }
}
impl Handler<Drain> for HttpApi {
    type Result = ResponseActFuture<Self, ()>;
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        self.drained = true;
        // Nobody waits in the backlog of a listener that none will serve: from here on, connecting is refused.
        (self.http, self.socket) = (None, None);
        let serving = self.serving.drain(..).map(|s| (s.handle, s.task));
        let (handles, tasks): (Vec<_>, Vec<_>) = serving.unzip();
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
