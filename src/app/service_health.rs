//! What load balancers ask at a Service's `healthCheckNodePort`: whether this node has endpoints.
//!
//! As kube-proxy answers: 200 when there is a ready endpoint on the node, 503 otherwise, the same
//! JSON, whatever the path.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};

use crate::{
    node::{ServiceHealth, Tables},
    tasks::CancellationToken,
};

/// Connections at once on one port.
const CONNECTIONS_MAX: usize = 32;
/// How long one may last.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two tries to listen on a port that is in use.
const RETRY: Duration = Duration::from_secs(10);

/// Serves the ports that the tables name, until told to stop.
///
/// # Errors
/// Never: a port that is in use is said, and tried again.
pub async fn run(mut tables: watch::Receiver<Tables>, stop: CancellationToken) -> Result<(), Infallible> {
    let mut servers: BTreeMap<u16, (watch::Sender<ServiceHealth>, tokio::task::AbortHandle)> =
        BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let wanted: BTreeMap<u16, ServiceHealth> =
            tables.borrow_and_update().health.iter().map(|health| (health.port, health.clone())).collect();
        servers.retain(|port, (_, server)| {
            let stays = wanted.contains_key(port);
            if !stays {
                server.abort();
            }
            stays
        });
        for (port, health) in wanted {
            if let Some((known, _)) = servers.get(&port) {
                known.send_replace(health);
                continue;
            }
            let (sender, receiver) = watch::channel(health);
            let server = running.spawn(serve(port, receiver));
            servers.insert(port, (sender, server));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = tables.changed() => if changed.is_err() { return Ok(()) },
            Some(_) = running.join_next() => {}
        }
    }
}

async fn serve(port: u16, health: watch::Receiver<ServiceHealth>) {
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => break listener,
            Err(error) => {
                let service = health.borrow().service.clone();
                tracing::warn!(port, service, %error, "no health of the service is told");
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        let health = health.clone();
        connections.spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let response = answer(&health.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).keep_alive(false);
            let _ =
                timeout(CONNECTION_TIME_MAX, builder.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

fn answer(health: &ServiceHealth) -> Response<Full<Bytes>> {
    let (namespace, name) = health.service.split_once('/').unwrap_or_default();
    let text = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\
         \t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": true\n}}",
        health.endpoints
    );
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if health.endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    for (name, value) in [("content-type", "application/json"), ("x-content-type-options", "nosniff")] {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    headers.insert("x-load-balancing-endpoint-weight", health.endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn no_endpoint_is_unavailable() {
        for (endpoints, status) in [(0, 503), (2, 200)] {
            let health = ServiceHealth { port: 1, service: "ns/web".into(), endpoints };
            let response = answer(&health);
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["service"]["name"], "web");
            assert_eq!(body["localEndpoints"], endpoints);
        }
    }
}
