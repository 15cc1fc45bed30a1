//! The API server fails at a request. What needs no guest is tried here: granting and revoking, making a token.

use std::fs;
use std::time::Duration;

use super::Row;
use super::api_proxy::{Act, ApiProxy, Rule};
use super::bed::{Bed, Verdict};
use super::bystanders::ClusterStrangers;
use crate::fixture::{Draft, Exit, Ran};
use crate::in_lab::kubernetes::{Node, exists, grants, kubectl_as, kubectl_output, tokens_of};
use crate::in_lab::libvirt::{instance, virsh_on};
use crate::in_lab::{NEW, text};

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
    let _grants = grants();
    let bed = Bed::new("fapi", "192.168.3.219");
    let proxy = ApiProxy::before(NEW, &[]);
    let kubeconfig = bed.file("admin.conf");
    proxy.kubeconfig(kubeconfig.as_ref());
    bed.edit(|spec| {
        spec.remove("cluster.join")
            .add("cluster.kubeconfig", kubeconfig.clone())
            .add("cluster.server", proxy.server())
    });
    let strangers = ClusterStrangers::new(NEW, "fapi", &bed.node);
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
        bed.run(command).exits(Exit::Done);
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
                let hit = bed.start(command).end(Duration::from_secs(90));
                let ends = [Exit::Done, Exit::Unfit, Exit::NodesFailed];
                expect_without_tokens(&mut verdict, "the command with the fault", hit, &ends);
                proxy.rules(&[]);
                expect_without_tokens(
                    &mut verdict,
                    "the command again",
                    bed.run(command),
                    &[Exit::Done],
                );
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
    let kubeconfig = bed.file("admin.conf");
    proxy.kubeconfig(kubeconfig.as_ref());
    let joined = Draft::parse(&fs::read_to_string(bed.path("cluster.yaml")).unwrap())
        .remove("cluster.join")
        .add("cluster.kubeconfig", kubeconfig);
    fs::write(bed.path("joined.yaml"), joined.text()).unwrap();
    let strangers = ClusterStrangers::new(NEW, "fleave", &bed.node);
    let down = ["down", "-f", "joined.yaml"];
    let ready = || {
        bed.claim();
        virsh_on(&bed.uri, &["resume", &bed.node]);
        Node::of("fleave-1", &instance(&bed.node))
    };
    let _node = ready();
    proxy.seen();
    bed.run(&down).exits(Exit::Done);
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
            let _node = ready();
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
                &bed.start(&down).end(Duration::from_secs(150)),
                &[Exit::Done, Exit::Unfit, Exit::Leftover],
            );
            if virsh_on(&bed.uri, &["list", "--all", "--state-paused", "--name"])
                .contains("fleave-1")
            {
                verdict.wrong.push("the VM was left paused".into());
            }
            proxy.rules(&[]);
            verdict.expect("down again", &bed.run(&down), &[Exit::Done]);
            verdict.left.extend(bed.left());
            if exists(NEW, "/api/v1/nodes/fleave-1") {
                verdict.left.push("the Node is left".into());
            }
            verdict.touched.extend(strangers.touched());
            bed.clear();
            rows[index].add(&format!("request {place} of {total}"), verdict);
        }
    }
    Row::end_all(rows);
}

/// `token create` prints a token: that is what it is for.
fn expect_without_tokens(verdict: &mut Verdict, what: &str, ran: Ran, exits: &[Exit]) {
    let ran = Ran {
        stdout: String::new(),
        ..ran
    };
    verdict.expect(what, &ran, exits);
}

/// Those that this test made, told by their annotation.
fn remove_tokens() {
    for secret in tokens_of(NEW, "default") {
        let name = secret["metadata"]["name"].as_str().unwrap();
        kubectl_output(NEW, &["delete", "secret", "-n", "kube-system", name]);
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
    let kubeconfig = path.display().to_string();
    let get = |what: &str| kubectl_as(&kubeconfig, &["get", "--raw", what]);
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
