//! The Ingress server of a node, fed with what its agent knows.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::{Common, Part},
    ingress,
    net::routes::IngressTable,
    node::Tables,
    tasks::Tasks,
};

/// How long a reader of the counters may take.
const METRICS_TIME_MAX: Duration = Duration::from_secs(5);

/// Starts the server unless it is disabled. A port that another program has is said and does not
/// stop the daemon.
pub fn start(tasks: &Tasks, common: &Common, tables: watch::Receiver<Tables>) {
    if !common.enabled(Part::Ingress) {
        return;
    }
    let at = |port: u16| (Ipv4Addr::UNSPECIFIED, port).into();
    let (http, https) = (at(common.ingress_http_port), at(common.ingress_https_port));
    let options = ingress::Options {
        // The texts were checked as flags.
        proxied_from: common.ingress_proxy_protocol_from.iter().filter_map(|t| t.parse().ok()).collect(),
        access_log: common.ingress_access_log.clone(),
        ..ingress::Options::default()
    };
    let metrics = common.ingress_metrics_listen;
    tasks.spawn("ingress", move |stop| async move {
        match ingress::Server::bind(http, https, options).await {
            Ok(server) => {
                tracing::info!(%http, %https, "Ingresses are served");
                tokio::join!(
                    server.run(stop.clone()),
                    stop.run_until_cancelled(follow(&server, tables)),
                    stop.run_until_cancelled(tell(&server, metrics)),
                );
            }
            Err(error) => tracing::error!(
                %error,
                "no Ingress is served on this node; free the port, choose others with \
                 --ingress-http-port and --ingress-https-port, or --disable ingress"
            ),
        }
        Ok::<_, Infallible>(())
    });
}

/// Serves the counters, one connection after the other.
async fn tell(server: &ingress::Server, listen: Option<SocketAddr>) {
    let Some(address) = listen else { return };
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%address, %error, "counters of Ingresses are not served"),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = service_fn(|_: Request<Incoming>| {
            let mut response = Response::new(Full::new(Bytes::from(server.metrics())));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        let served = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
        let _ = tokio::time::timeout(METRICS_TIME_MAX, served).await;
    }
}

async fn follow(server: &ingress::Server, mut tables: watch::Receiver<Tables>) {
    let mut served = None;
    loop {
        let items = tables.borrow_and_update().ingress.clone();
        let hashes: Vec<String> = items.iter().map(|item| item.hash.clone()).collect();
        if served.as_ref() != Some(&hashes) {
            let mut table = IngressTable::default();
            for item in &items {
                match item.read::<IngressTable>() {
                    Ok(part) => table.extend(part),
                    Err(error) => tracing::error!(%error, "rules of Ingresses are not understood"),
                }
            }
            tracing::debug!(
                rules = table.rules.len(),
                certificates = table.certificates.len(),
                "rules of Ingresses"
            );
            server.set_table(Arc::new(table));
            served = Some(hashes);
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}
