//! The cluster's room against an API server that fails, answers late, and is used by others at the same time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nodegraft::core::error::{Error, Kind, one_line};
use nodegraft::core::finding::State;
use nodegraft::core::ownership::Owner;
use nodegraft::rooms::cluster::Cluster;
use nodegraft::rooms::cluster::access::{Binding, NeededBy, Released, binding_name};
use nodegraft::rooms::cluster::csr::Request;
use nodegraft::rooms::cluster::node::Node;
use nodegraft::rooms::cluster::token::{Terms, Token};
use nodegraft::stages::preflight;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api_server::{ApiServer, Fault};

const NODES: &str = "/api/v1/nodes";
const N1: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
const CSR: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests/csr-1";
const BINDING: &str =
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodegraft:homelab:node-bootstrapper";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

fn owner() -> Owner {
    Owner::of("homelab", "n1", "abc")
}

/// A Node whose kubelet runs on the machine `abc`.
fn kube_node(ready: bool) -> Value {
    json!({
        "metadata": {"labels": {"os": "linux"}},
        "status": {
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "message": "as it is"}],
            "nodeInfo": {"machineID": "abc", "bootID": "b", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "operatingSystem": "", "osImage": "", "systemUUID": ""},
        },
    })
}

async fn with_node() -> (ApiServer, Cluster, Node) {
    let api = ApiServer::new();
    api.put(N1, kube_node(false));
    let cluster = api.connect().await;
    let node = cluster.node("n1").await.unwrap().unwrap();
    (api, cluster, node)
}

/// Says all that an error says, and sees that it is said in clauses.
fn clauses(error: &Error) -> String {
    let all = one_line(error);
    for mark in [
        "ApiError",
        "HyperError",
        "ServiceError",
        "Status {",
        "Some(",
        "\n",
    ] {
        assert!(!all.contains(mark), "a library's own words: {all}");
    }
    all
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

// -- waiting --

#[tokio::test]
async fn trouble_on_the_way_is_waited_out() {
    let retry_after = |seconds: u32| json!({"retryAfterSeconds": seconds});
    let cases: [(&str, Vec<Fault>, Duration); 7] = [
        (
            "503, then an answer",
            vec![Fault::Status(503, Value::Null)],
            Duration::ZERO,
        ),
        (
            "500, 502 and 504",
            vec![
                Fault::Status(500, Value::Null),
                Fault::Text(502, "<html>\nbad gateway"),
                Fault::Status(504, Value::Null),
            ],
            Duration::ZERO,
        ),
        (
            "cut before the answer",
            vec![Fault::Cut, Fault::Cut],
            Duration::ZERO,
        ),
        (
            "cut in the middle of it",
            vec![Fault::CutInTheMiddle],
            Duration::ZERO,
        ),
        (
            "429 with a time to wait",
            vec![Fault::Status(429, retry_after(2))],
            Duration::from_secs(2),
        ),
        (
            "429 without",
            vec![Fault::Text(
                429,
                "Too many requests, please try again later.",
            )],
            Duration::from_secs(1),
        ),
        ("nothing", vec![], Duration::ZERO),
    ];
    let each = cases
        .into_iter()
        .map(|(what, faults, at_least)| async move {
            let (api, cluster, _) = with_node().await;
            let expected = 1 + faults.len() + 1;
            api.fail(&format!("GET {N1}"), faults);
            let begun = Instant::now();
            let node = cluster
                .node("n1")
                .await
                .unwrap_or_else(|error| panic!("{what}: {}", one_line(&error)));
            assert!(node.is_some(), "{what}");
            assert_eq!(api.seen(&format!("GET {N1}")).len(), expected, "{what}");
            assert!(begun.elapsed() >= at_least, "{what}: {:?}", begun.elapsed());
        });
    futures_util::future::join_all(each).await;
}

#[tokio::test]
async fn a_connection_refused_for_a_moment_is_waited_out() {
    let (api, cluster, _) = with_node().await;
    api.down_for(Duration::from_millis(600));
    assert!(cluster.node("n1").await.unwrap().is_some());
}

#[tokio::test]
async fn an_answer_is_an_answer_at_once() {
    for code in [400, 401, 403, 405, 409, 410, 422] {
        let (api, cluster, _) = with_node().await;
        api.always(&format!("GET {N1}"), Fault::Status(code, Value::Null));
        let begun = Instant::now();
        let error = cluster.node("n1").await.unwrap_err();
        assert_eq!(
            clauses(&error),
            "looking for the Node n1: it is told to",
            "{code}"
        );
        assert_eq!(
            api.seen(&format!("GET {N1}")).len(),
            2,
            "{code}: it was asked again"
        );
        assert!(begun.elapsed() < Duration::from_millis(200), "{code}");
    }
    let (api, cluster, _) = with_node().await;
    api.always(
        &format!("GET {N1}"),
        Fault::Text(403, "<html><body>\nForbidden by proxy"),
    );
    assert_eq!(
        clauses(&cluster.node("n1").await.unwrap_err()),
        "looking for the Node n1: HTTP 403"
    );
}

#[tokio::test]
async fn a_wrong_address_is_told_at_once_and_a_server_that_stumbles_is_waited_for() {
    let begun = Instant::now();
    let kubeconfig = {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let text = ApiServer::new().kubeconfig();
        let (before, rest) = text.split_once("http://").unwrap();
        format!("{before}http://{free}{}", &rest[rest.find('\'').unwrap()..])
    };
    let error = Cluster::from_text(&kubeconfig, "the test", None)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Unfit);
    assert!(
        clauses(&error).ends_with("connection refused"),
        "{}",
        clauses(&error)
    );
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );

    let api = ApiServer::new();
    api.fail(
        "GET /version",
        [Fault::Cut, Fault::Status(503, Value::Null)],
    );
    api.fail("GET /apis", [Fault::CutInTheMiddle]);
    assert_eq!(api.connect().await.version, "v1.35.4");

    let api = ApiServer::new();
    api.always("GET /version", Fault::Status(401, Value::Null));
    let error = Cluster::from_text(&api.kubeconfig(), "the test", None)
        .await
        .err()
        .unwrap();
    assert!(
        error.help().unwrap().contains("credentials"),
        "{:?}",
        error.help()
    );
}

#[tokio::test]
async fn a_watch_is_begun_again_however_it_ends() {
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version", "reason": "Expired"}});
    let cases: [(&str, Vec<Fault>); 6] = [
        ("it ends", vec![Fault::Events(vec![])]),
        ("it is too old", vec![Fault::Events(vec![gone])]),
        (
            "it is refused as too old",
            vec![Fault::Status(410, Value::Null)],
        ),
        ("it is cut", vec![Fault::Cut]),
        (
            "the server is busy",
            vec![Fault::Status(429, json!({"retryAfterSeconds": 1}))],
        ),
        (
            "it tells nonsense",
            vec![Fault::Events(vec![json!({"type": "MODIFIED"})])],
        ),
    ];
    let each = cases.into_iter().map(|(what, faults)| async move {
        let (api, cluster, _) = with_node().await;
        api.fail(&format!("WATCH {NODES}"), faults);
        // What happens between the two watches must not be missed.
        api.after(&format!("WATCH {NODES}"), |kept| {
            kept.put(N1, kube_node(true))
        });
        let seen = tokio::time::timeout(
            Duration::from_secs(8),
            cluster.watch_node("n1", |node| node.ready, |_| {}),
        )
        .await;
        assert!(
            seen.unwrap_or_else(|_| panic!("{what}: nothing was seen"))
                .unwrap()
                .ready
        );
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_survives_a_server_that_goes_and_comes_back() {
    let (api, cluster, _) = with_node().await;
    api.fail(&format!("WATCH {NODES}"), [Fault::Events(vec![])]);
    let (watched, ()) = tokio::join!(cluster.watch_node("n1", |node| node.ready, |_| {}), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tokio::task::block_in_place(|| api.down_for(Duration::from_millis(700)));
        api.put(N1, kube_node(true));
    });
    assert!(watched.unwrap().ready);
}

#[tokio::test]
async fn a_watch_that_is_not_allowed_is_an_answer() {
    let (api, cluster, _) = with_node().await;
    api.always(&format!("WATCH {NODES}"), Fault::Status(403, Value::Null));
    let error = cluster
        .watch_node("n1", |node| node.ready, |_| {})
        .await
        .unwrap_err();
    assert_eq!(clauses(&error), "watching the Node n1: it is told to");
    let (api, cluster, _) = with_node().await;
    api.always(&format!("GET {NODES}"), Fault::Status(403, Value::Null));
    let error = cluster
        .watch_node("n1", |node| node.ready, |_| {})
        .await
        .unwrap_err();
    assert_eq!(clauses(&error), "listing the Node n1: it is told to");
}

// -- lists --

/// The lists of Nodes that were asked for: where each began.
fn pages(api: &ApiServer) -> Vec<Option<u32>> {
    let begun = |query: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix("continue=")?.parse().ok())
    };
    api.seen(&format!("GET {NODES}"))
        .iter()
        .map(|request| begun(&request.query))
        .collect()
}

#[tokio::test]
async fn a_large_list_comes_page_by_page() {
    let (api, cluster, _) = with_node().await;
    for number in 0..600 {
        api.put(&format!("{NODES}/m{number:03}"), kube_node(true));
    }
    let names: Vec<String> = cluster
        .all_nodes()
        .await
        .unwrap()
        .into_iter()
        .map(|node| node.name)
        .collect();
    assert_eq!(
        (names.len(), names[0].as_str(), names[600].as_str()),
        (601, "m000", "n1")
    );
    assert_eq!(pages(&api), [None, Some(250), Some(500)]);
    assert!(
        api.seen(&format!("GET {NODES}"))
            .iter()
            .all(|request| request.query.contains("limit=250"))
    );

    // A watch begins so, too: what it waits for may be on the last page.
    let seen = tokio::time::timeout(
        Duration::from_secs(5),
        cluster.watch_node("n1", |node| !node.ready, |_| {}),
    )
    .await;
    assert!(!seen.unwrap().unwrap().ready);
}

#[tokio::test]
async fn a_list_whose_place_is_forgotten_is_begun_anew_and_one_that_is_cut_is_not() {
    let (api, cluster, _) = with_node().await;
    for number in 0..300 {
        api.put(&format!("{NODES}/m{number:03}"), kube_node(true));
    }
    let whole = || async { cluster.all_nodes().await.map(|nodes| nodes.len()) };
    let second = format!("GET {NODES}?continue=250");
    api.fail(&second, [Fault::Status(410, Value::Null)]);
    assert_eq!(whole().await.unwrap(), 301);
    assert_eq!(pages(&api), [None, Some(250), None, Some(250)]);

    api.fail(&second, [Fault::Cut]);
    assert_eq!(whole().await.unwrap(), 301);
    assert_eq!(pages(&api)[4..], [None, Some(250), Some(250)]);

    // It is not begun for ever.
    api.always(&second, Fault::Status(410, Value::Null));
    assert_eq!(
        clauses(&whole().await.unwrap_err()),
        "listing the Nodes: it is told to"
    );
    assert_eq!(pages(&api).len(), 7 + 10);
}

// -- Nodes --

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn labels_and_taints_converge_beside_those_of_others() {
    let (api, cluster, node) = with_node().await;
    // Somebody else writes the Node between our look and our update.
    api.after(&format!("GET {N1}"), |kept| {
        let mut node = kept.get(N1).unwrap();
        node["metadata"]["labels"]["theirs"] = json!("x");
        node["spec"] = json!({"taints": [{"key": "theirs", "effect": "NoSchedule"}]});
        kept.put(N1, node);
    });
    let taints = ["gpu=true:NoSchedule".parse().unwrap()];
    let changed = cluster
        .converge_node(
            &node,
            &owner(),
            Some("abcdef"),
            &labels(&[("disk", "ssd")]),
            &taints,
        )
        .await
        .unwrap();
    assert_eq!(
        changed,
        [
            "marked as n1 of homelab",
            "labels.disk: ssd",
            "taints.gpu=true:NoSchedule: gpu=true:NoSchedule"
        ]
    );
    assert_eq!(
        api.seen(&format!("PATCH {N1}")).len(),
        2,
        "the first one met a newer version"
    );
    let node = cluster.node("n1").await.unwrap().unwrap();
    assert_eq!(
        node.labels,
        labels(&[("disk", "ssd"), ("os", "linux"), ("theirs", "x")])
    );
    assert_eq!(
        node.taints
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["theirs:NoSchedule", "gpu=true:NoSchedule"]
    );
    assert_eq!(
        (node.owner.clone(), node.token.as_deref()),
        (Some(owner()), Some("abcdef"))
    );
    assert_eq!(node.differences(&labels(&[("disk", "ssd")]), &taints), []);

    // Again changes nothing, and writes nothing.
    assert!(
        cluster
            .converge_node(&node, &owner(), None, &labels(&[("disk", "ssd")]), &taints)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(api.seen(&format!("PATCH {N1}")).len(), 2);

    // What we gave and the spec no longer has goes; an update whose answer is lost is told nevertheless.
    api.fail(&format!("PATCH {N1}"), [Fault::DoneButCut]);
    let changed = cluster
        .converge_node(&node, &owner(), None, &BTreeMap::new(), &[])
        .await
        .unwrap();
    assert_eq!(
        changed,
        [
            "labels.disk: taken away",
            "taints.gpu=true:NoSchedule: taken away"
        ]
    );
    let node = cluster.node("n1").await.unwrap().unwrap();
    assert_eq!(node.labels, labels(&[("os", "linux"), ("theirs", "x")]));
    assert_eq!(
        node.taints
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["theirs:NoSchedule"]
    );
    assert_eq!(
        node.token.as_deref(),
        Some("abcdef"),
        "no token given leaves it"
    );
    assert!(node.applied_labels.is_empty() && node.applied_taints.is_empty());
}

#[tokio::test]
async fn the_node_of_another_machine_is_never_written() {
    let (api, cluster, node) = with_node().await;
    let mut other = kube_node(true);
    other["status"]["nodeInfo"]["machineID"] = json!("xyz");
    // It comes while our first update is on its way.
    api.fail(&format!("PATCH {N1}"), [Fault::Status(409, Value::Null)]);
    let theirs = other.clone();
    api.after(&format!("PATCH {N1}"), move |kept| {
        kept.put(N1, theirs.clone())
    });
    let error = cluster
        .converge_node(&node, &owner(), None, &labels(&[("disk", "ssd")]), &[])
        .await
        .unwrap_err();
    assert!(
        clauses(&error).contains("of another machine"),
        "{}",
        clauses(&error)
    );
    assert_eq!(api.seen(&format!("PATCH {N1}")).len(), 1);
    assert_eq!(
        api.get(N1).unwrap()["metadata"]["labels"],
        other["metadata"]["labels"]
    );
}

#[tokio::test]
async fn exactly_the_node_that_was_looked_at_is_deleted() {
    // It, with its lease.
    let (api, cluster, node) = with_node().await;
    api.put(LEASE, json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node.uid}]}}));
    assert!(cluster.delete_node(&node).await.unwrap());
    assert_eq!((api.get(N1), api.get(LEASE)), (None, None));
    for request in api.seen("DELETE *") {
        assert!(
            request.body["preconditions"]["uid"].is_string(),
            "{} named no UID",
            request.what
        );
    }
    assert!(
        !cluster.delete_node(&node).await.unwrap(),
        "it is gone already"
    );

    // Another of its name: neither it nor its lease.
    let (api, cluster, node) = with_node().await;
    api.remove(N1);
    api.put(N1, kube_node(true));
    api.put(LEASE, json!({"metadata": {}}));
    assert!(!cluster.delete_node(&node).await.unwrap());
    assert!(api.get(N1).is_some() && api.get(LEASE).is_some());

    // A lease that nobody owns goes with the Node that we delete; that of another Node does not.
    for (owners, stays) in [
        (json!(null), false),
        (
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "another"}]),
            true,
        ),
    ] {
        let (api, cluster, node) = with_node().await;
        api.put(LEASE, json!({"metadata": {"ownerReferences": owners}}));
        assert!(cluster.delete_node(&node).await.unwrap());
        assert_eq!(api.get(LEASE).is_some(), stays, "{owners}");
    }

    // Whose answer is lost was deleted by us all the same.
    let (api, cluster, node) = with_node().await;
    api.fail(&format!("DELETE {N1}"), [Fault::DoneButCut]);
    assert!(cluster.delete_node(&node).await.unwrap());

    // One that a finalizer holds is not gone, and that is said.
    let (api, cluster, _) = with_node().await;
    let mut held = api.get(N1).unwrap();
    held["metadata"]["finalizers"] = json!(["example.com/detach"]);
    api.put(N1, held);
    let node = cluster.node("n1").await.unwrap().unwrap();
    let (deleted, ()) = tokio::join!(cluster.delete_node(&node), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(api.get(N1).is_some());
        api.remove(N1);
    });
    assert!(deleted.unwrap());

    // A conflict of another kind is tried again.
    let (api, cluster, node) = with_node().await;
    api.fail(&format!("DELETE {N1}"), [Fault::Status(409, Value::Null)]);
    assert!(cluster.delete_node(&node).await.unwrap());
    assert_eq!(api.get(N1), None);
}

#[tokio::test]
async fn a_kubelet_lives_by_its_lease_and_not_by_ready() {
    let (api, cluster, node) = with_node().await;
    assert!(
        !cluster.kubelet_lives(&node).await.unwrap(),
        "it has no lease"
    );
    api.put(LEASE, json!({"metadata": {}, "spec": {"renewTime": now()}}));
    assert!(cluster.kubelet_lives(&node).await.unwrap());
    // Its clock is an hour off, to either side: it is watched.
    for off in ["2020-01-01T00:00:00.000000Z", "2090-01-01T00:00:00.000000Z"] {
        api.put(LEASE, json!({"metadata": {}, "spec": {"renewTime": off}}));
        let renewed = off.replace("00:00.0", "00:10.0");
        let (lives, ()) = tokio::join!(cluster.kubelet_lives(&node), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            api.put(
                LEASE,
                json!({"metadata": {}, "spec": {"renewTime": renewed}}),
            );
        });
        assert!(lives.unwrap(), "{off}");
    }
}

#[tokio::test]
async fn who_may_not_see_leases_or_delete_requests_still_removes_a_node() {
    let forbidden = || Fault::Status(403, Value::Null);
    let lease = |uid: &str| json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid}]}});
    for what in ["GET", "DELETE"] {
        let (api, cluster, node) = with_node().await;
        api.put(LEASE, lease(&node.uid));
        api.always(&format!("{what} {LEASE}"), forbidden());
        assert!(cluster.delete_node(&node).await.unwrap(), "{what}");
        assert_eq!(api.get(N1), None, "{what}");
    }
    let (api, cluster, node) = with_node().await;
    api.always(&format!("DELETE {N1}"), forbidden());
    assert_eq!(
        clauses(&cluster.delete_node(&node).await.unwrap_err()),
        "deleting the Node n1: it is told to"
    );

    let (api, cluster, request) = with_request().await;
    api.always(&format!("DELETE {CSR}"), forbidden());
    assert!(!cluster.delete_request(&request).await.unwrap());

    // Ready is left to go by.
    for ready in [true, false] {
        let (api, cluster, node) = with_node().await;
        api.put(
            N1,
            json!({"metadata": {"uid": node.uid}, "status": kube_node(ready)["status"]}),
        );
        api.always(&format!("GET {LEASE}"), forbidden());
        assert_eq!(cluster.kubelet_lives(&node).await.unwrap(), ready);
        assert_eq!(cluster.renews_lease(&node).await.unwrap(), ready);
    }
}

// -- tokens --

fn terms(owner: Owner) -> Terms {
    Terms {
        authentication: true,
        node: Some(owner),
        ..Terms::default()
    }
}

#[tokio::test]
async fn a_token_whose_making_was_not_answered_is_ours_and_another_is_not() {
    let api = ApiServer::new();
    let cluster = api.connect().await;
    let token = Token::parse("abcdef.0123456789abcdef").unwrap();
    api.fail(&format!("POST {SECRETS}"), [Fault::DoneButCut]);
    cluster.create_token(&token, &terms(owner())).await.unwrap();
    assert_eq!(api.seen(&format!("POST {SECRETS}")).len(), 2);
    let ours = cluster.our_tokens().await.unwrap();
    assert_eq!(
        ours.iter()
            .map(|token| (token.id.as_str(), &token.owner))
            .collect::<Vec<_>>(),
        [("abcdef", &owner())]
    );

    // The same id with another secret, or of another node's life, is somebody else's.
    let same_id = Token::parse("abcdef.ffffffffffffffff").unwrap();
    assert!(
        clauses(
            &cluster
                .create_token(&same_id, &terms(owner()))
                .await
                .unwrap_err()
        )
        .ends_with("it already exists")
    );
    let later = Owner::of("homelab", "n1", "def");
    assert!(cluster.create_token(&token, &terms(later)).await.is_err());

    // It is deleted by its UID: one that took its name meanwhile stays.
    let path = format!("{SECRETS}/bootstrap-token-abcdef");
    let mut another = api.get(&path).unwrap();
    another["metadata"]["uid"] = json!("another");
    api.put(&path, another);
    assert!(!cluster.delete_token_of(&ours[0]).await.unwrap());
    assert!(api.get(&path).is_some());
    let now = cluster.our_tokens().await.unwrap();
    assert!(cluster.delete_token_of(&now[0]).await.unwrap());
    assert_eq!(api.get(&path), None);
}

#[tokio::test]
async fn tokens_that_do_not_say_whose_they_are_are_not_ours() {
    let api = ApiServer::new();
    let token = |labels: Value, annotations: Value| json!({"type": "bootstrap.kubernetes.io/token", "metadata": {"labels": labels, "annotations": annotations}});
    let label = json!({"app.kubernetes.io/managed-by": "nodegraft"});
    let whole = json!({"nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n1", "nodegraft.io/instance": "abc"});
    let named = json!({"nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n1"});
    api.put(
        &format!("{SECRETS}/bootstrap-token-aaaaaa"),
        token(label.clone(), whole.clone()),
    );
    api.put(
        &format!("{SECRETS}/bootstrap-token-bbbbbb"),
        token(label.clone(), named),
    );
    api.put(
        &format!("{SECRETS}/bootstrap-token-cccccc"),
        token(json!({}), whole.clone()),
    );
    api.put(
        &format!("{SECRETS}/other"),
        json!({"type": "Opaque", "metadata": {"labels": label, "annotations": whole}}),
    );
    let ours = api.connect().await.our_tokens().await.unwrap();
    assert_eq!(
        ours.iter()
            .map(|token| token.id.as_str())
            .collect::<Vec<_>>(),
        ["aaaaaa"]
    );
}

// -- certificate requests --

async fn with_request() -> (ApiServer, Cluster, Request) {
    let api = ApiServer::new();
    api.put(CSR, json!({"metadata": {}, "spec": {"username": "system:bootstrap:abcdef", "request": ""}, "status": {}}));
    let cluster = api.connect().await;
    let request = cluster.csrs().await.unwrap().remove(0);
    (api, cluster, request)
}

/// The usual objection of these tests: the user must stay the same.
fn by_our_token(request: &Request) -> Option<String> {
    (request.requestor != "system:bootstrap:abcdef")
        .then(|| format!("it was made by {}", request.requestor))
}

#[tokio::test]
async fn exactly_the_request_that_was_looked_at_is_approved() {
    let (api, cluster, request) = with_request().await;
    api.fail(
        &format!("PUT {CSR}/approval"),
        [Fault::Status(409, Value::Null), Fault::DoneButCut],
    );
    assert!(
        cluster
            .approve_csr(&request, "n1 joins", by_our_token)
            .await
            .unwrap()
    );
    let approved = cluster.csrs().await.unwrap().remove(0);
    assert_eq!(approved.message.as_deref(), Some("n1 joins"));
    for put in api.seen("PUT *") {
        assert!(put.body["metadata"]["resourceVersion"].is_string());
    }

    // Another one of its name.
    let (api, cluster, request) = with_request().await;
    let mut another = api.get(CSR).unwrap();
    another["metadata"]["uid"] = json!("another");
    api.put(CSR, another);
    let error = cluster
        .approve_csr(&request, "n1 joins", by_our_token)
        .await
        .unwrap_err();
    assert!(
        clauses(&error).contains("another request has its name"),
        "{}",
        clauses(&error)
    );
    assert!(api.seen("PUT *").is_empty());

    // One that is not what it was, seen after a conflict.
    let (api, cluster, request) = with_request().await;
    api.fail(
        &format!("PUT {CSR}/approval"),
        [Fault::Status(409, Value::Null)],
    );
    api.after(&format!("PUT {CSR}/approval"), |kept| {
        let mut changed = kept.get(CSR).unwrap();
        changed["spec"]["username"] = json!("mallory");
        kept.put(CSR, changed);
    });
    let error = cluster
        .approve_csr(&request, "n1 joins", by_our_token)
        .await
        .unwrap_err();
    assert!(
        clauses(&error).ends_with("it was made by mallory"),
        "{}",
        clauses(&error)
    );
    assert_eq!(api.get(CSR).unwrap()["status"], json!({}));

    // Who may not is told so.
    let (api, cluster, request) = with_request().await;
    api.always("PUT *", Fault::Status(403, Value::Null));
    assert!(
        !cluster
            .approve_csr(&request, "n1 joins", by_our_token)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn only_our_requests_are_deleted() {
    let (api, cluster, request) = with_request().await;
    let ids = ["abcdef".to_owned()];
    assert!(
        cluster
            .requests_of("n1", &["zzzzzz".to_owned()], true)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        cluster.requests_of("n1", &ids, false).await.unwrap(),
        std::slice::from_ref(&request)
    );
    let mut another = api.get(CSR).unwrap();
    another["metadata"]["uid"] = json!("another");
    api.put(CSR, another);
    assert!(!cluster.delete_request(&request).await.unwrap());
    assert!(api.get(CSR).is_some());
    let [now] = &cluster.requests_of("n1", &ids, false).await.unwrap()[..] else {
        panic!("one is there")
    };
    assert!(cluster.delete_request(now).await.unwrap());
    assert_eq!(api.get(CSR), None);
}

// -- the binding --

fn binding() -> Binding {
    Binding::of_cluster("homelab", "system:bootstrappers:nodegraft:homelab".into())
}

fn marked(cluster: &str) -> Value {
    let mut node = kube_node(true);
    node["metadata"]["annotations"] = json!({"nodegraft.io/cluster": cluster, "nodegraft.io/node": "far", "nodegraft.io/instance": "def"});
    node
}

#[tokio::test]
async fn a_machine_that_has_joined_needs_no_binding_any_more() {
    let api = ApiServer::new();
    let cluster = api.connect().await;
    cluster.bind(&binding()).await.unwrap();
    api.put("/api/v1/nodes/far", marked("homelab"));
    let removed = cluster
        .release_binding("homelab", NeededBy::Tokens)
        .await
        .unwrap();
    assert_eq!(removed, Released::Removed(binding_name("homelab")));
    assert!(api.get(BINDING).is_none());
}

#[tokio::test]
async fn a_binding_stays_as_long_as_anything_of_its_cluster_does() {
    let api = ApiServer::new();
    let cluster = api.connect().await;
    assert_eq!(
        cluster
            .release_binding("homelab", NeededBy::NodesAndTokens)
            .await
            .unwrap(),
        Released::Absent
    );
    assert!(cluster.bind(&binding()).await.unwrap());
    assert!(!cluster.bind(&binding()).await.unwrap(), "it is so already");

    // A Node of this cluster, on whatever host.
    api.put("/api/v1/nodes/far", marked("homelab"));
    assert_eq!(
        cluster
            .release_binding("homelab", NeededBy::NodesAndTokens)
            .await
            .unwrap(),
        Released::Kept("the Node far is of this cluster".into())
    );
    api.put("/api/v1/nodes/far", marked("other"));

    // A token of this cluster, of whatever run.
    let token = Token::parse("abcdef.0123456789abcdef").unwrap();
    cluster.create_token(&token, &terms(owner())).await.unwrap();
    assert!(
        matches!(cluster.release_binding("homelab", NeededBy::NodesAndTokens).await.unwrap(), Released::Kept(why) if why.contains("abcdef"))
    );
    assert!(cluster.delete_token("abcdef").await.unwrap());
    assert!(api.seen(&format!("DELETE {BINDING}")).is_empty());

    // A token that comes while it goes finds it again.
    api.after(&format!("DELETE {BINDING}"), |kept| {
        let token = json!({
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {"labels": {"app.kubernetes.io/managed-by": "nodegraft"},
                "annotations": {"nodegraft.io/cluster": "homelab", "nodegraft.io/node": "n2", "nodegraft.io/instance": "ghi"}},
        });
        kept.put(&format!("{SECRETS}/bootstrap-token-ffffff"), token);
    });
    let before = api.get(BINDING).unwrap();
    assert!(
        matches!(cluster.release_binding("homelab", NeededBy::NodesAndTokens).await.unwrap(), Released::Kept(why) if why.contains("ffffff"))
    );
    let again = api.get(BINDING).unwrap();
    for key in ["roleRef", "subjects"] {
        assert_eq!(again[key], before[key]);
    }
    assert_eq!(
        again["metadata"]["annotations"]["nodegraft.io/cluster"],
        "homelab"
    );
    assert_ne!(again["metadata"]["uid"], before["metadata"]["uid"]);

    // Nothing is left.
    api.remove(&format!("{SECRETS}/bootstrap-token-ffffff"));
    assert_eq!(
        cluster
            .release_binding("homelab", NeededBy::NodesAndTokens)
            .await
            .unwrap(),
        Released::Removed(binding_name("homelab"))
    );
    assert_eq!(api.get(BINDING), None);
    for request in api.seen("DELETE *") {
        assert!(
            request.body["preconditions"]["uid"].is_string(),
            "{} named no UID",
            request.what
        );
    }
}

#[tokio::test]
async fn a_binding_that_may_not_be_looked_at_is_kept_and_told() {
    for what in [
        format!("GET {BINDING}"),
        format!("GET {NODES}"),
        format!("GET {SECRETS}"),
    ] {
        let api = ApiServer::new();
        let cluster = api.connect().await;
        cluster.bind(&binding()).await.unwrap();
        api.always(&what, Fault::Status(403, Value::Null));
        let Released::Kept(why) = cluster
            .release_binding("homelab", NeededBy::NodesAndTokens)
            .await
            .unwrap()
        else {
            panic!("{what}: it was not kept")
        };
        assert!(
            why.starts_with(&format!(
                "the role binding {} was not looked at: ",
                binding_name("homelab")
            )),
            "{what}: {why}"
        );
        assert!(api.get(BINDING).is_some(), "{what}");
    }
    // One that is ours and may not be removed is left, and that is no success.
    let api = ApiServer::new();
    let cluster = api.connect().await;
    cluster.bind(&binding()).await.unwrap();
    api.always(
        &format!("DELETE {BINDING}"),
        Fault::Status(403, Value::Null),
    );
    let left = cluster
        .release_binding("homelab", NeededBy::NodesAndTokens)
        .await
        .unwrap_err();
    assert!(
        left.help()
            .unwrap()
            .contains("kubectl delete clusterrolebinding"),
        "{left}"
    );
    // Any other trouble is still an error.
    let api = ApiServer::new();
    api.always(&format!("GET {BINDING}"), Fault::Status(401, Value::Null));
    assert!(
        api.connect()
            .await
            .release_binding("homelab", NeededBy::NodesAndTokens)
            .await
            .is_err()
    );
}

// -- what we may do --

const REVIEWS: &str = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// What Preflight does not find good.
async fn findings(cluster: &Cluster) -> Vec<(State, String)> {
    let found = preflight::cluster(cluster).await.unwrap();
    found
        .into_iter()
        .filter(|finding| finding.state != State::Good)
        .map(|finding| (finding.state, finding.what))
        .collect()
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_bad_only_where_nothing_works_without_it() {
    let api = ApiServer::new();
    let cluster = api.connect().await;
    assert_eq!(findings(&cluster).await, []);
    let cases: [(&[&str], State, &str); 9] = [
        (
            &["create secrets"],
            State::Bad,
            "mint bootstrap tokens: it lacks create secrets",
        ),
        (
            &["list secrets", "delete secrets"],
            State::Bad,
            "find and delete bootstrap tokens: it lacks list secrets, delete secrets",
        ),
        (
            &["watch certificatesigningrequests"],
            State::Bad,
            "see certificate requests: it lacks watch certificatesigningrequests",
        ),
        (
            &["list nodes"],
            State::Bad,
            "see Nodes: it lacks list nodes",
        ),
        (
            &["patch nodes"],
            State::Bad,
            "label Nodes: it lacks patch nodes",
        ),
        (
            &["update certificatesigningrequests/approval"],
            State::Doubtful,
            "approve certificate requests: it lacks update certificatesigningrequests/approval",
        ),
        (
            &["delete certificatesigningrequests"],
            State::Doubtful,
            "delete certificate requests: it lacks delete certificatesigningrequests",
        ),
        (
            &["get leases", "delete leases"],
            State::Doubtful,
            "see and delete the leases of Nodes: it lacks get leases, delete leases",
        ),
        (
            &["list pods", "create pods/eviction"],
            State::Doubtful,
            "drain Nodes: it lacks list pods, create pods/eviction",
        ),
    ];
    for (denied, state, what) in cases {
        let api = ApiServer::new();
        api.deny(denied);
        assert_eq!(
            findings(&api.connect().await).await,
            [(state, format!("this kubeconfig may not {what}"))]
        );
    }
}

#[tokio::test]
async fn who_may_not_ask_what_he_may_is_doubted_and_not_refused() {
    let api = ApiServer::new();
    api.always(
        "POST /apis/authorization.k8s.io*",
        Fault::Status(403, Value::Null),
    );
    let found = findings(&api.connect().await).await;
    assert_eq!(
        found,
        [
            (
                State::Doubtful,
                "this kubeconfig may not ask what it may do".to_owned()
            ),
            (
                State::Doubtful,
                "this kubeconfig may not ask whether renewals of node certificates are approved"
                    .to_owned()
            ),
        ]
    );
    // A review that fails otherwise is no doubt.
    let api = ApiServer::new();
    api.always(REVIEWS, Fault::Status(401, Value::Null));
    assert!(matches!(
        &findings(&api.connect().await).await[..],
        [(State::Bad, _)]
    ));
}

#[tokio::test]
async fn a_binding_of_our_name_that_is_not_ours_stays() {
    let label = json!({"app.kubernetes.io/managed-by": "nodegraft"});
    for metadata in [
        json!({}),
        json!({"labels": label}),
        json!({"labels": label, "annotations": {"nodegraft.io/cluster": "other"}}),
    ] {
        let api = ApiServer::new();
        let theirs = json!({"metadata": metadata, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
        api.put(BINDING, theirs);
        let cluster = api.connect().await;
        assert!(
            matches!(
                cluster
                    .release_binding("homelab", NeededBy::NodesAndTokens)
                    .await
                    .unwrap(),
                Released::Foreign(_)
            ),
            "{metadata}"
        );
        assert!(cluster.bind(&binding()).await.is_err(), "{metadata}");
        assert!(api.get(BINDING).is_some() && api.seen("DELETE *").is_empty());
    }
}

#[tokio::test]
async fn a_binding_whose_making_was_not_answered_was_made() {
    let api = ApiServer::new();
    api.fail("POST /apis/rbac*", [Fault::DoneButCut]);
    assert!(api.connect().await.bind(&binding()).await.unwrap());
}

// -- draining --

const PODS: &str = "/api/v1/namespaces/default/pods";

fn put_pod(api: &ApiServer, name: &str, owner: Option<&str>) {
    let owners: Vec<Value> =
        owner.map(|kind| json!({"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true})).into_iter().collect();
    let pod = json!({
        "metadata": {"namespace": "default", "ownerReferences": owners},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"},
    });
    api.put(&format!("{PODS}/{name}"), pod);
}

fn eviction(name: &str) -> String {
    format!("POST {PODS}/{name}/eviction")
}

/// What the updates of the Node made of it: `true` for a cordon, `false` for the way back.
fn cordons(api: &ApiServer) -> Vec<bool> {
    api.seen(&format!("PATCH {N1}"))
        .iter()
        .filter_map(|request| request.body["spec"]["unschedulable"].as_bool())
        .collect()
}

async fn drain(cluster: &Cluster, node: &Node, limit: Duration) -> Result<usize, Error> {
    cluster
        .drain(node, limit, &CancellationToken::new(), |_| {})
        .await
}

#[tokio::test]
async fn a_drain_evicts_what_must_go_and_nothing_else() {
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "web", Some("ReplicaSet"));
    put_pod(&api, "agent", Some("DaemonSet"));
    put_pod(&api, "bare", None);
    let elsewhere =
        json!({"metadata": {"namespace": "default"}, "spec": {"nodeName": "n2", "containers": []}});
    api.put(&format!("{PODS}/elsewhere"), elsewhere);
    api.fail(
        &eviction("web"),
        [
            Fault::Status(503, Value::Null),
            Fault::Cut,
            Fault::Status(500, Value::Null),
        ],
    );
    assert_eq!(
        drain(&cluster, &node, Duration::from_secs(20))
            .await
            .unwrap(),
        2
    );
    for stays in ["agent", "elsewhere"] {
        assert!(api.get(&format!("{PODS}/{stays}")).is_some(), "{stays}");
        assert!(api.seen(&eviction(stays)).is_empty(), "{stays}");
    }
    for request in api.seen(&format!("POST {PODS}*")) {
        assert_eq!(request.body["apiVersion"], "policy/v1");
        assert!(
            request.body["deleteOptions"]["preconditions"]["uid"].is_string(),
            "{} named no UID",
            request.what
        );
    }
    assert_eq!(
        cordons(&api),
        [true],
        "it stays cordoned: it is about to go"
    );
}

#[tokio::test]
async fn a_pod_that_took_the_name_of_another_is_not_evicted_in_its_place() {
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "db-0", Some("StatefulSet"));
    // Its successor comes up on another Node, while we ask.
    api.after("GET /api/v1/pods", |kept| {
        let successor = json!({"metadata": {"namespace": "default"}, "spec": {"nodeName": "n2", "containers": []}});
        kept.put(&format!("{PODS}/db-0"), successor);
    });
    drain(&cluster, &node, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(api.seen(&eviction("db-0")).len(), 1);
    assert_eq!(
        api.get(&format!("{PODS}/db-0")).unwrap()["spec"]["nodeName"],
        "n2"
    );
}

fn budget() -> Fault {
    let cause = json!({"reason": "DisruptionBudget", "message": "The disruption budget keep needs 1 healthy pods and has 1 currently"});
    Fault::Status(429, json!({"causes": [cause], "retryAfterSeconds": 10}))
}

#[tokio::test]
async fn a_drain_that_is_held_back_names_the_budget_and_leaves_the_node_as_it_was() {
    for (cordoned, expected) in [(false, vec![true, false]), (true, vec![true])] {
        let (api, cluster, _) = with_node().await;
        put_pod(&api, "kept", None);
        let mut before = api.get(N1).unwrap();
        before["spec"]["unschedulable"] = json!(cordoned);
        api.put(N1, before);
        let node = cluster.node("n1").await.unwrap().unwrap();
        api.always(&eviction("kept"), budget());
        let error = drain(&cluster, &node, Duration::from_millis(1500))
            .await
            .unwrap_err();
        let all = clauses(&error);
        assert!(
            all.contains("was not drained within 1 s, with 1 pod left"),
            "{all}"
        );
        assert!(all.contains("default/kept is held back: The disruption budget keep needs 1 healthy pods and has 1 currently"), "{all}");
        assert!(error.detail().contains(&"default/kept"));
        assert_eq!(cordons(&api), expected, "cordoned before: {cordoned}");
        assert_eq!(
            cluster.node("n1").await.unwrap().unwrap().unschedulable,
            cordoned
        );
        assert!(
            api.seen(&eviction("kept")).len() > 1,
            "a budget may get room meanwhile"
        );
    }
}

#[tokio::test]
async fn a_drain_that_is_stopped_or_fails_leaves_the_node_schedulable() {
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "kept", None);
    api.always(&eviction("kept"), budget());
    let stop = CancellationToken::new();
    let told = Mutex::new(Vec::new());
    let (drained, ()) = tokio::join!(
        cluster.drain(&node, Duration::from_secs(60), &stop, |what| told
            .lock()
            .unwrap()
            .push(what)),
        async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            stop.cancel();
        }
    );
    assert!(drained.unwrap_err().is_interruption());
    assert_eq!(cordons(&api), [true, false]);
    assert!(
        told.lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("kept is held back")),
        "{told:?}"
    );

    let (api, cluster, node) = with_node().await;
    put_pod(&api, "kept", None);
    api.always(&eviction("kept"), Fault::Status(403, Value::Null));
    let error = drain(&cluster, &node, Duration::from_secs(20))
        .await
        .unwrap_err();
    assert_eq!(
        clauses(&error),
        "evicting the pod default/kept: it is told to"
    );
    assert_eq!(cordons(&api), [true, false]);

    // Nor does it get lost because others write the Node just then.
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "kept", None);
    api.always(&eviction("kept"), Fault::Status(403, Value::Null));
    api.fail(
        &format!("PATCH {N1}"),
        [
            Fault::Status(409, Value::Null),
            Fault::Status(503, Value::Null),
        ],
    );
    drain(&cluster, &node, Duration::from_secs(20))
        .await
        .unwrap_err();
    assert!(!cluster.node("n1").await.unwrap().unwrap().unschedulable);
    assert_eq!(cordons(&api), [true, true, true, false]);

    // Stopped before it began: nothing was touched.
    let (api, cluster, node) = with_node().await;
    let stopped = CancellationToken::new();
    stopped.cancel();
    assert!(
        cluster
            .drain(&node, Duration::from_secs(60), &stopped, |_| {})
            .await
            .unwrap_err()
            .is_interruption()
    );
    assert!(cordons(&api).is_empty());
}

#[tokio::test]
async fn a_node_that_cannot_be_made_schedulable_again_is_told() {
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "kept", None);
    api.always(&eviction("kept"), Fault::Status(403, Value::Null));
    let (ended, ()) = tokio::join!(drain(&cluster, &node, Duration::from_secs(20)), async {
        while cordons(&api).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        api.always(&format!("PATCH {N1}"), Fault::Status(403, Value::Null));
    });
    let error = ended.unwrap_err();
    assert!(
        error
            .detail()
            .iter()
            .any(|line| line.contains("kubectl uncordon n1")),
        "{:?}",
        error.detail()
    );
}

/// A kubelet that lives must confirm that a pod has ended; one that dies meanwhile cannot.
#[tokio::test]
async fn a_drain_waits_for_a_kubelet_that_lives_and_not_for_a_dead_one() {
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "slow", None);
    // Accepted, and it stays: its end takes long.
    api.always(&eviction("slow"), Fault::Text(201, "{}"));
    assert_eq!(
        drain(&cluster, &node, Duration::from_secs(5))
            .await
            .unwrap(),
        1,
        "no lease, no kubelet: accepted is enough"
    );

    let (api, cluster, node) = with_node().await;
    put_pod(&api, "slow", None);
    api.always(&eviction("slow"), Fault::Text(201, "{}"));
    api.put(LEASE, json!({"metadata": {}, "spec": {"renewTime": now()}}));
    let error = drain(&cluster, &node, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(clauses(&error).contains("1 pod left"));
    assert_eq!(api.seen(&eviction("slow")).len(), 1, "it is asked once");

    let begun = Instant::now();
    let (drained, ()) = tokio::join!(drain(&cluster, &node, Duration::from_secs(30)), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.remove(LEASE);
    });
    assert_eq!(drained.unwrap(), 1);
    assert!(begun.elapsed() > Duration::from_secs(1));
}

#[tokio::test]
async fn a_node_that_is_gone_or_another_is_not_drained() {
    let (api, cluster, node) = with_node().await;
    api.remove(N1);
    api.put(N1, kube_node(true));
    put_pod(&api, "theirs", None);
    assert_eq!(
        drain(&cluster, &node, Duration::from_secs(5))
            .await
            .unwrap(),
        0
    );
    assert!(cordons(&api).is_empty() && api.get(&format!("{PODS}/theirs")).is_some());
    // It is replaced just as it is to be cordoned.
    let (api, cluster, node) = with_node().await;
    put_pod(&api, "theirs", None);
    api.after(&format!("GET {N1}"), |kept| {
        kept.remove(N1);
        kept.put(N1, kube_node(true));
    });
    assert_eq!(
        drain(&cluster, &node, Duration::from_secs(5))
            .await
            .unwrap(),
        0
    );
    assert_eq!(api.get(N1).unwrap()["spec"]["unschedulable"], Value::Null);
    assert!(api.get(&format!("{PODS}/theirs")).is_some());
}
