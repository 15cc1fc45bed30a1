//! The API server fails at a request. What needs no guest is tried here: granting and revoking, making a token.

use std::fs;
use std::time::Duration;

use super::Row;
use super::api_proxy::{Act, ApiProxy, Rule};
use super::bed::{Bed, Verdict, virsh};
use super::bystanders::ClusterStrangers;
use super::preload::fault;
use crate::in_lab::ownership::{Node, instance, register};
use crate::in_lab::{GRANTS, NEW, kubectl, kubectl_output, text};

/// Named as the table shows them.
const ACTS: [(&str, Act); 12] = [
    ("401", Act::Status(401)),
    ("403", Act::Status(403)),
    ("409", Act::Status(409)),
    ("429, Retry-After", Act::Busy(1)),
    ("500", Act::Status(500)),
    ("503", Act::Status(503)),
    ("refused", Act::Refused),
    ("unanswered", Act::Unanswered),
    ("cut in the body", Act::CutAfter(20)),
    ("silent in the body", Act::SilentAfter(20)),
    ("silent", Act::Silence),
    ("410", Act::Gone),
];

/// The requests that these commands make, in their order; every one fails once, in every way.
#[test]
#[ignore = "needs the lab: make faults"]
fn each_request_fails_once() {
    let _grants = GRANTS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let bed = Bed::new("fapi", "192.168.3.219");
    let proxy = ApiProxy::before(NEW, &[]);
    let kubeconfig = bed.dir.path().join("admin.conf");
    proxy.kubeconfig(&kubeconfig);
    bed.edit(|spec| {
        spec.replace(
            "join: false",
            &format!(
                "kubeconfig: {}, server: '{}'",
                kubeconfig.display(),
                proxy.server()
            ),
        )
    });
    let strangers = ClusterStrangers::new(NEW, "fapi", &bed.node);
    let kubeconfig = kubeconfig.display().to_string();
    let commands: [&[&str]; 3] = [
        &["access", "grant", "--kubeconfig", &kubeconfig],
        &[
            "token",
            "create",
            "--kubeconfig",
            &kubeconfig,
            "--ttl",
            "10m",
        ],
        &["access", "revoke", "--kubeconfig", &kubeconfig],
    ];
    let mut rows: Vec<Row> = ACTS
        .iter()
        .map(|(name, _)| Row::new(format!("API: {name}")))
        .collect();
    for (turn, command) in commands.into_iter().enumerate() {
        proxy.rules(&[]);
        proxy.seen();
        let whole = bed.run(command);
        assert_eq!(
            whole.code,
            Some(0),
            "through a proxy that only looks: {}",
            whole.stderr
        );
        let total = proxy.seen().len();
        assert!(total > 0, "{command:?} asked nothing of the API server");
        for (index, (_, act)) in ACTS.iter().enumerate() {
            for place in 1..=total {
                // A sample takes one request for each way to fail, the commands in turn.
                if !super::all() && (turn, place) != (index % 3, index / 3 % total + 1) {
                    continue;
                }
                proxy.rules(&[Rule {
                    method: "",
                    path: "",
                    from: place as u64,
                    times: 1,
                    act: *act,
                }]);
                let mut verdict = Verdict::default();
                let hit = bed.start(command, &[]).end(Duration::from_secs(90));
                expect_without_tokens(&mut verdict, "the command with the fault", &hit, &[0, 4, 5]);
                proxy.rules(&[]);
                expect_without_tokens(&mut verdict, "the command again", &bed.run(command), &[0]);
                verdict.touched.extend(strangers.touched());
                rows[index].add(
                    &format!("{} {}, request {place} of {total}", command[0], command[1]),
                    verdict,
                );
            }
        }
    }
    remove_tokens();
    Row::end_all(rows);
}

/// The requests of `down` for a node with a Node in the cluster; every one fails once, in every way.
#[test]
#[ignore = "needs the lab: make faults"]
fn each_request_of_down_fails_once() {
    let bed = Bed::new("fleave", "192.168.3.228");
    let proxy = ApiProxy::before(NEW, &[]);
    let kubeconfig = bed.dir.path().join("admin.conf");
    proxy.kubeconfig(&kubeconfig);
    let spec = fs::read_to_string(bed.dir.path().join("cluster.yaml")).unwrap();
    let joined = spec.replace(
        "join: false",
        &format!("kubeconfig: {}", kubeconfig.display()),
    );
    fs::write(bed.dir.path().join("joined.yaml"), joined).unwrap();
    let strangers = ClusterStrangers::new(NEW, "fleave", &bed.node);
    let _gone = Node("fleave-1");
    let down = ["down", "-f", "joined.yaml"];
    // Killed as it was to be started: nobody waits for its boot.
    let ready = || {
        let up = bed.run_with(&["up"], &fault("kill@virDomainResume:1"));
        assert_eq!(
            up.code,
            Some(-9),
            "no call starts the domain: {}",
            up.stderr
        );
        virsh(&bed.uri, &["resume", &bed.node]);
        register(&bed.node, &instance(&bed.node));
    };
    ready();
    proxy.seen();
    assert_eq!(bed.run(&down).code, Some(0));
    let total = proxy.seen().len();
    let mut rows: Vec<Row> = ACTS
        .iter()
        .map(|(name, _)| Row::new(format!("API, `down`: {name}")))
        .collect();
    for (index, (_, act)) in ACTS.iter().enumerate() {
        for place in 1..=total {
            // A sample takes one request for each way to fail.
            if !super::all() && place != (index * 5) % total + 1 {
                continue;
            }
            ready();
            proxy.rules(&[Rule {
                method: "",
                path: "",
                from: place as u64,
                times: 1,
                act: *act,
            }]);
            let mut verdict = Verdict::default();
            verdict.expect(
                "down with the fault",
                &bed.start(&down, &[]).end(Duration::from_secs(150)),
                &[0, 4, 6],
            );
            if virsh(&bed.uri, &["list", "--all", "--state-paused", "--name"]).contains("fleave-1")
            {
                verdict.wrong.push("the VM was left paused".into());
            }
            proxy.rules(&[]);
            verdict.expect("down again", &bed.run(&down), &[0]);
            verdict.left.extend(bed.left());
            if kubectl_output(NEW, &["get", "node", "fleave-1"])
                .status
                .success()
            {
                verdict.left.push("the Node is left".into());
                kubectl(NEW, &["delete", "node", "fleave-1"]);
            }
            verdict.touched.extend(strangers.touched());
            bed.clear();
            rows[index].add(&format!("request {place} of {total}"), verdict);
        }
    }
    Row::end_all(rows);
}

/// `token create` prints a token: that is what it is for.
fn expect_without_tokens(verdict: &mut Verdict, what: &str, ran: &super::bed::Ran, codes: &[i32]) {
    let ran = super::bed::Ran {
        code: ran.code,
        stdout: String::new(),
        stderr: ran.stderr.clone(),
    };
    verdict.expect(what, &ran, codes);
}

/// Those that this test made, told by their annotation.
fn remove_tokens() {
    let list = kubectl(
        NEW,
        &[
            "get",
            "--raw",
            "/api/v1/namespaces/kube-system/secrets?labelSelector=app.kubernetes.io/managed-by=nodegraft",
        ],
    );
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    for secret in list["items"].as_array().unwrap() {
        if secret["metadata"]["annotations"]["nodegraft.io/cluster"] == "default" {
            let name = secret["metadata"]["name"].as_str().unwrap();
            kubectl_output(NEW, &["delete", "secret", "-n", "kube-system", name]);
        }
    }
}

/// The proxy itself: a request passes whole, rules count, and what was asked is kept.
#[test]
#[ignore = "needs the lab: make faults"]
fn the_proxy_passes_and_fails_as_told() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = ApiProxy::before(NEW, &[Rule::once("GET", "/api/v1/nodes", Act::Status(503))]);
    let path = dir.path().join("admin.conf");
    proxy.kubeconfig(&path);
    let get = |what: &str| {
        let kubectl = std::path::PathBuf::from(super::bed::variable("NODEGRAFT_LAB_KUBERNETES"))
            .join(NEW)
            .join("kubectl");
        std::process::Command::new(kubectl)
            .arg("--kubeconfig")
            .arg(&path)
            .args(["get", "--raw", what])
            .output()
            .unwrap()
    };
    assert!(text(&get("/api/v1/nodes")).contains("a fault of the test"));
    assert!(text(&get("/api/v1/nodes")).contains("NodeList"));
    assert_eq!(text(&get("/healthz")), "ok");
    let seen = proxy.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(
        (
            seen[2].method.as_str(),
            seen[2].path.as_str(),
            proxy.acted()
        ),
        ("GET", "/healthz", 1)
    );

    proxy.rules(&[
        Rule::always("GET", "watch=", Act::Gone),
        Rule::once("GET", "/version", Act::CutAfter(10)),
    ]);
    assert!(text(&get("/api/v1/nodes?watch=1&timeoutSeconds=1")).contains("\"code\":410"));
    let cut = get("/version");
    assert!(
        !cut.status.success() && cut.stdout.len() <= 10,
        "{}",
        text(&cut)
    );
    assert!(text(&get("/version")).contains("gitVersion"));
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .contains("http://127.0.0.1:")
    );
}
