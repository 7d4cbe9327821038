//! The API server as clients see it: a server in a temporary folder, asked by the real `kubectl`
//! where there is one.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
};

use sampan::{
    api::{Config, Server, pki::Pki},
    clock::SystemClock,
    objects::Objects,
    store::Store,
    tasks::CancellationToken,
};

struct Cluster {
    folder: tempfile::TempDir,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let objects = Objects::new(store, Arc::new(SystemClock));
        let config = Config {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_san: Vec::new(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_domain: "cluster.local".to_owned(),
        };
        let pki = Arc::new(Pki::open(&folder.path().join("pki")).unwrap());
        let server = Server::bind(config, objects, Arc::clone(&pki)).await.unwrap();
        let address = server.local_addr();
        pki.write_kubeconfig(&folder.path().join("admin.conf"), &format!("https://{address}")).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self { folder, address, stop }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("admin.conf")
    }

    /// Runs kubectl with words split at blanks; `input` goes to its standard input.
    async fn kubectl(&self, words: &str, input: &str) -> Output {
        use std::io::Write as _;
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.config())
            .arg("--cache-dir")
            .arg(self.folder.path().join("cache"))
            .args(words.split_whitespace())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// kubectl's output; it must succeed.
    async fn ok(&self, words: &str, input: &str) -> String {
        let output = self.kubectl(words, input).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "kubectl {words}: {}{text}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// kubectl's error; it must fail.
    async fn refused(&self, words: &str, input: &str) -> String {
        let output = self.kubectl(words, input).await;
        assert!(!output.status.success(), "kubectl {words} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn have_kubectl() -> bool {
    let found =
        Command::new("kubectl").args(["version", "--client"]).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: there is no kubectl here");
    }
    found
}

const CONFIG_MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: one}}\ndata: {k: v}\n";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_creates_reads_and_deletes() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    assert!(cluster.ok("version", "").await.contains("Server Version: v1.36"));
    assert!(cluster.ok("api-resources", "").await.contains("deployments"));
    assert!(cluster.ok("create --validate=false -f -", CONFIG_MAP).await.contains("configmap/a created"));
    let again = cluster.refused("create --validate=false -f -", CONFIG_MAP).await;
    assert!(again.contains("AlreadyExists") && again.contains("configmaps \"a\" already exists"), "{again}");
    assert!(cluster.ok("get cm a -o jsonpath={.data.k}", "").await.contains('v'));
    assert!(cluster.ok("get cm -l x=one", "").await.contains("a "));
    assert!(cluster.ok("get cm -l x=z -o name", "").await.is_empty());
    assert!(cluster.ok("get cm --field-selector metadata.name=a -o name", "").await.contains("configmap/a"));
    assert!(cluster.ok("get --raw /readyz?verbose", "").await.contains("readyz check passed"));
    assert!(cluster.ok("delete cm a", "").await.contains("deleted"));
    assert!(cluster.refused("get cm a", "").await.contains("NotFound"));
    assert!(cluster.address.port() > 0);
}
