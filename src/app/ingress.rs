//! The Ingress server of a node, fed with what its agent knows.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

use tokio::sync::watch;

use crate::{
    config::{Common, Part},
    ingress,
    net::routes::IngressTable,
    node::Tables,
    tasks::Tasks,
};

/// Starts the server unless it is disabled. A port that another program has is said and does not
/// stop the daemon.
pub fn start(tasks: &Tasks, common: &Common, tables: watch::Receiver<Tables>) {
    if !common.enabled(Part::Ingress) {
        return;
    }
    let at = |port: u16| (Ipv4Addr::UNSPECIFIED, port).into();
    let (http, https) = (at(common.ingress_http_port), at(common.ingress_https_port));
    tasks.spawn("ingress", move |stop| async move {
        match ingress::Server::bind(http, https).await {
            Ok(server) => {
                tracing::info!(%http, %https, "Ingresses are served");
                tokio::join!(server.run(stop.clone()), stop.run_until_cancelled(follow(&server, tables)));
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
