//! What runs is what the spec says: a changed spec is in effect in the running processes, and a step that was stopped,
//! orphaned, edited or short of memory leaves nothing behind that acts.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{NEW, World, eventually, must};
use crate::faults::api_proxy::{Act, ApiProxy, Rule};

const IP: &str = "192.168.3.134";

/// The process of a service, as systemd knows it.
fn main_pid(world: &World, ip: &str, unit: &str) -> String {
    world
        .guest(ip, &format!("systemctl show -p MainPID {unit}"))
        .trim()
        .to_owned()
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_changed_spec_is_in_effect_in_what_runs() {
    let ip = "192.168.3.133";
    let world = World::new(
        "effect",
        NEW,
        &["{name: effect, address: 192.168.3.133/24}"],
        |spec| spec,
    );
    joins_through_faults(&world);
    let (kubelet, containerd) = (
        main_pid(&world, ip, "kubelet"),
        main_pid(&world, ip, "containerd"),
    );
    // Once by its package, once with what the step wrote.
    assert_eq!(
        world
            .guest(
                ip,
                "journalctl -b -u containerd -o cat | grep -c '^Started containerd'"
            )
            .trim(),
        "2"
    );

    world.edit(|spec| {
        spec.replace(
            "defaults:\n",
            "defaults:\n  vars: {kubelet_extra_args: ['--max-pods=37']}\n",
        )
    });
    assert_eq!(world.run(&["up"]).code, 0);
    assert!(
        world
            .guest(
                ip,
                "tr '\\0' ' ' < /proc/$(systemctl show -p MainPID --value kubelet)/cmdline"
            )
            .contains("--max-pods=37")
    );
    eventually(
        Duration::from_secs(120),
        "the Node to tell of 37 pods",
        || {
            world.kubectl(&[
                "get",
                "node",
                "effect",
                "-o",
                "jsonpath={.status.capacity.pods}",
            ]) == "37"
        },
    );
    assert_ne!(main_pid(&world, ip, "kubelet"), kubelet);
    assert_eq!(
        main_pid(&world, ip, "containerd"),
        containerd,
        "what reads nothing of it goes on"
    );

    let kubelet = main_pid(&world, ip, "kubelet");
    world.edit(|spec| {
        spec.replace(
            "vars: {",
            "vars: {pause_image: 'registry.k8s.io/pause:3.9', ",
        )
    });
    assert_eq!(world.run(&["up"]).code, 0);
    assert_ne!(main_pid(&world, ip, "containerd"), containerd);
    assert!(
        world
            .guest(ip, "containerd config dump")
            .contains("registry.k8s.io/pause:3.9")
    );
    assert_eq!(main_pid(&world, ip, "kubelet"), kubelet);

    // What does not come up is the step's failure, again and again, until it is mended.
    let containerd = main_pid(&world, ip, "containerd");
    world.edit(|spec| spec.replace("--max-pods=37", "--no-such-flag=1"));
    for _ in 0..2 {
        let bad = world.run(&["up"]);
        assert_eq!(bad.code, 5);
        assert!(
            bad.stderr.contains("the service kubelet does not come up")
                && bad.stderr.contains("no-such-flag"),
            "{}",
            bad.stderr
        );
    }
    world.edit(|spec| spec.replace("--no-such-flag=1", "--max-pods=38"));
    assert_eq!(world.run(&["up"]).code, 0);
    assert!(
        world
            .guest(
                ip,
                "tr '\\0' ' ' < /proc/$(systemctl show -p MainPID --value kubelet)/cmdline"
            )
            .contains("--max-pods=38")
    );
    assert_eq!(main_pid(&world, ip, "containerd"), containerd);
    assert!(world.run(&["up"]).stderr.contains("nothing to do"));
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}

/// The join itself, with an API server that fails on the way: each request once, and each in another way. It gets there all the
/// same, and leaves no token.
fn joins_through_faults(world: &World) {
    let second = |path, act| Rule {
        method: "GET",
        path,
        from: 2,
        times: 1,
        act,
    };
    let faults = [
        Rule::once("POST", "/namespaces/kube-system/secrets", Act::Status(503)),
        Rule::once("GET", "watch=", Act::CutAfter(10)),
        second("watch=", Act::Gone),
        second("/api/v1/nodes/effect", Act::Refused),
        second("/certificatesigningrequests?", Act::Status(500)),
        Rule::once("PUT", "/approval", Act::Status(409)),
        Rule::once("PATCH", "/api/v1/nodes/effect", Act::Busy(1)),
        Rule::once("DELETE", "/secrets/", Act::Unanswered),
    ];
    let proxy = ApiProxy::before(NEW, &faults);
    let through = world.dir.path().join("through.conf");
    proxy.kubeconfig(&through);
    let real = super::kubernetes(NEW)
        .join("admin.conf")
        .display()
        .to_string();
    world.edit(|spec| {
        spec.replace(
            &real,
            &format!("{}\n  server: {}", through.display(), proxy.server()),
        )
    });
    let up = world.run(&["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert!(world.ready("effect"));
    assert!(
        proxy.acted() >= 6,
        "only {} of {} faults were met",
        proxy.acted(),
        faults.len()
    );
    let deletions: Vec<_> = proxy
        .seen()
        .into_iter()
        .filter(|request| request.method == "DELETE")
        .collect();
    assert!(
        deletions.iter().all(|request| request.body.contains("uid")),
        "a deletion without the UID that was looked at: {deletions:?}"
    );
    let tokens =
        world.kubectl(&["get", "--raw", "/api/v1/namespaces/kube-system/secrets?labelSelector=app.kubernetes.io/managed-by=nodegraft"]);
    assert!(
        !tokens.contains("\"nodegraft.io/cluster\":\"effect\""),
        "the token is left: {tokens}"
    );
    world.edit(|spec| {
        spec.replace(
            &format!("{}\n  server: {}", through.display(), proxy.server()),
            &real,
        )
    });
}

/// One machine that joins nothing, and one cheap step that changes from scene to scene.
fn machine() -> World {
    let world = World::tiny("scenes", &[("scenes", 134)], |spec| {
        spec.replace("defaults:\n", "defaults:\n  profile: cheap\n")
    });
    world.template(
        "profiles/cheap/profile.yaml",
        "description: one step\nruntime: containerd\nsteps: [work]\n",
    );
    world
}

#[test]
#[ignore = "needs the lab: make test"]
fn a_step_never_outlives_its_run_unseen() {
    let world = machine();
    stopped(&world);
    orphaned(&world);
    uploaded(&world);
    out_of_memory(&world);
    logs_are_kept(&world);
    assert_eq!(world.run(&["down"]).code, 0);
    world.assert_nothing_left();
}

fn work(world: &World, script: &str) {
    world.template("profiles/cheap/work.sh", &format!("set -eu\n{script}\n"));
}

fn begins(world: &World, file: &str) {
    eventually(Duration::from_secs(600), "the step to begin", || {
        let key = world.dir.path().join("state/scenes/id_ed25519");
        key.exists() && guest_says(world, &format!("cat {file}")).is_some()
    });
}

/// The command lines in the guest that are a step's. The tiny guest has no pgrep.
fn of_the_step(world: &World) -> Vec<String> {
    let look =
        "for each in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$each; echo; done 2>/dev/null; true";
    let all = world.guest(IP, look);
    assert!(all.contains("dropbear"), "no process was seen: {all}");
    all.lines()
        .filter(|line| line.starts_with("sleep ") || line.contains("1-work"))
        .map(str::to_owned)
        .collect()
}

fn nothing_of_it_runs(world: &World) {
    eventually(
        Duration::from_secs(15),
        "everything of the step to be gone",
        || of_the_step(world).is_empty(),
    );
}

/// What a command says in a guest that may not be there yet, or `None` if it fails.
fn guest_says(world: &World, command: &str) -> Option<String> {
    let key = world.dir.path().join("state/scenes/id_ed25519");
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=5",
        "BatchMode=yes",
    ];
    let mut ssh = Command::new("ssh");
    ssh.arg("-i").arg(key);
    for option in options {
        ssh.args(["-o", option]);
    }
    let output = ssh.arg(format!("root@{IP}")).arg(command).output().unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

/// Ctrl-C in a step leaves no shell behind. Before that, another run is told whose step it waits for.
fn stopped(world: &World) {
    work(world, "touch /root/begun-1\nsleep 3600");
    let up = world.start(&["up"]);
    begins(world, "/root/begun-1");
    let other = "cd /var/lib/nodegraft/steps && echo true >9-other.sh && \
        sh \"$PWD\"/run-step.*.sh run 9-other \"$PWD/9-other.sh\" d0 r0 3 'other@host, nodegraft process 1' 2>&1 || echo ended with $?";
    let told = world.guest(IP, other);
    assert!(
        told.contains("nodegraft-step:waiting the step 1-work of ")
            && told.contains("nodegraft-step:busy"),
        "{told}"
    );
    assert!(told.contains("ended with 75"), "{told}");
    must("kill", &["-INT", &up.id().to_string()]);
    assert_eq!(world.end(up).code, 130);
    nothing_of_it_runs(world);
    assert_eq!(
        world
            .guest(IP, "ls /var/lib/nodegraft/steps | grep -c 'done$' || true")
            .trim(),
        "0"
    );
}

/// nodegraft is killed in a step, the script is edited, and `up` comes again while the old shell still reads the old one.
fn orphaned(world: &World) {
    work(
        world,
        "touch /root/begun-2\nsleep 300\n# a comment of the old script\ntouch /root/old-went-on",
    );
    let up = world.start(&["up"]);
    begins(world, "/root/begun-2");
    must("kill", &["-KILL", &up.id().to_string()]);
    world.end(up);
    assert!(!of_the_step(world).is_empty(), "nobody could end it");
    let lines = "# a comment: ; touch /root/middle-of-the-new\n".repeat(40);
    work(world, &format!("{lines}touch /root/new-ran"));
    let up = world.run(&["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert!(
        up.stderr.contains("ended the step 1-work of ")
            && up.stderr.contains("its own run is gone"),
        "{}",
        up.stderr
    );
    nothing_of_it_runs(world);
    assert_eq!(
        world
            .guest(
                IP,
                "cd /root && ls -d new-ran old-went-on middle-of-the-new 2>/dev/null || true"
            )
            .trim(),
        "new-ran"
    );
    assert!(world.run(&["up"]).stderr.contains("nothing to do"));
}

/// The same path with other bytes is another file.
fn uploaded(world: &World) {
    world.edit(|spec| {
        spec.replace(
            "nodes:\n",
            "  kubelet: {version: 1.35.4, file: ./payload}\nnodes:\n",
        )
    });
    work(world, "cat /var/lib/nodegraft/files/kubelet >/root/got");
    for content in ["one", "two"] {
        fs::write(world.dir.path().join("payload"), content).unwrap();
        assert_eq!(world.run(&["up"]).code, 0);
        assert_eq!(world.guest(IP, "cat /root/got"), content);
    }
    assert!(world.run(&["up"]).stderr.contains("nothing to do"));
}

/// Not a deadline, not a number: the kernel's own line.
fn out_of_memory(world: &World) {
    work(world, "dd if=/dev/zero of=/dev/null bs=200M count=1");
    let up = world.run(&["up"]);
    assert_eq!(up.code, 5);
    assert!(
        up.stderr.contains("ran out of memory in the step `work`") && up.stderr.contains("(dd)"),
        "{}",
        up.stderr
    );
    assert!(!up.stderr.contains("was not done within"), "{}", up.stderr);
}

fn logs_are_kept(world: &World) {
    let logs = fs::read_dir(world.dir.path().join("state/scenes/scenes/steps")).unwrap();
    let mut logs: Vec<_> = logs
        .map(|log| log.unwrap().file_name().into_string().unwrap())
        .collect();
    logs.sort();
    assert!(
        logs.len() >= 5
            && logs
                .iter()
                .all(|log| log.starts_with("1-work.") && log.ends_with(".log")),
        "{logs:?}"
    );
    assert!(logs.contains(&"1-work.log".to_owned()));
}
