//! What no agent can do without: one connection, one lease with its beats, one stream of three watchers, one key. Nothing of ours.
use std::time::Duration;

use etcd_client::{Certificate, Client as Etcd, ConnectOptions, Identity, PutOptions, TlsOptions, WatchOptions};
use tokio::task::JoinHandle;

use super::etcd::Server;

/// Ends with its drop.
pub struct Client {
    beats: JoinHandle<()>,
    watch: JoinHandle<()>,
    _etcd: Etcd,
}
impl Drop for Client {
    fn drop(&mut self) {
        self.beats.abort();
        self.watch.abort();
    }
}
impl Client {
    pub async fn connect(server: &Server, n: usize) -> Self {
        let ip = super::member::address(n).to_string();
        let options = server.options();
        let mut connect = ConnectOptions::new()
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(user) = options.user {
            connect = connect.with_user(user.name, user.password);
        }
        if options.tls.is_some() {
            let read = |name: &str| std::fs::read(server.dir().join(name)).expect("it was written at the start");
            let identity = Identity::from_pem(read("own.pem"), read("own.key"));
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read("ca.pem")))
                .identity(identity);
            connect = connect.with_tls(tls);
        }
        let mut etcd = Etcd::connect(options.endpoints, Some(connect))
            .await
            .expect("etcd is there");
        let lease = etcd.lease_grant(30, None).await.expect("a lease").id();
        let (mut keeper, mut answers) = etcd.lease_keep_alive(lease).await.expect("a stream of beats");
        etcd.put(
            format!("/agent/health/{ip}"),
            "Online",
            Some(PutOptions::new().with_lease(lease)),
        )
        .await
        .expect("a key");
        let prefix = || Some(WatchOptions::new().with_prefix());
        let stream = etcd
            .watch(format!("/cron/jobs/{ip}/"), prefix())
            .await
            .expect("a watch");
        let (mut sender, mut responses) = stream.split();
        for other in ["/cron/groups/fleet/jobs/".to_owned(), format!("/cron/commands/{ip}/")] {
            sender
                .watch(other, prefix())
                .await
                .expect("one more in the same stream");
        }
        let beats = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                if keeper.keep_alive().await.is_err() || answers.message().await.is_err() {
                    return;
                }
            }
        });
        let watch = tokio::spawn(async move {
            let _sender = sender; // the stream lives as long as it does
            while let Ok(Some(_)) = responses.message().await {}
        });
        Self {
            beats,
            watch,
            _etcd: etcd,
        }
    }
}
