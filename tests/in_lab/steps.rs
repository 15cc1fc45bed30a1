//! A step that was stopped, orphaned, edited or short of memory leaves nothing behind that acts. One tiny machine that joins
//! nothing, and one cheap step that changes from scene to scene.

use std::fs;
use std::time::Duration;

use super::{World, eventually};
use crate::fixture::Exit;

const IP: &str = "192.168.3.134";

#[test]
#[ignore = "needs the lab: make test"]
fn a_step_never_outlives_its_run_unseen() {
    let world = World::tiny("scenes")
        .node("scenes", 134)
        .add("defaults.profile", "work");
    stopped(&world);
    orphaned(&world);
    uploaded(&world);
    out_of_memory(&world);
    logs_are_kept(&world);
    world.down();
}

fn work(world: &World, script: &str) {
    world.step(&format!("set -eu\n{script}\n"));
}

fn begins(world: &World, file: &str) {
    eventually(Duration::from_secs(600), "the step to begin", || {
        world.guest_if_up(IP, &format!("cat {file}")).is_some()
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
    up.interrupt();
    world.end(up).exits(Exit::Interrupted);
    nothing_of_it_runs(world);
    let done = "ls /var/lib/nodegraft/steps | grep -c 'done$' || true";
    assert_eq!(world.guest(IP, done).trim(), "0");
}

/// nodegraft is killed in a step, the script is edited, and `up` comes again while the old shell still reads the old one.
fn orphaned(world: &World) {
    work(
        world,
        "touch /root/begun-2\nsleep 300\n# a comment of the old script\ntouch /root/old-went-on",
    );
    let up = world.start(&["up"]);
    begins(world, "/root/begun-2");
    up.kill();
    world.end(up).is_killed();
    assert!(!of_the_step(world).is_empty(), "nobody could end it");
    let lines = "# a comment: ; touch /root/middle-of-the-new\n".repeat(40);
    work(world, &format!("{lines}touch /root/new-ran"));
    world
        .run(&["up"])
        .exits(Exit::Done)
        .says_all(&["ended the step 1-work of ", "its own run is gone"]);
    nothing_of_it_runs(world);
    let marks = "cd /root && ls -d new-ran old-went-on middle-of-the-new 2>/dev/null || true";
    assert_eq!(world.guest(IP, marks).trim(), "new-ran");
    world.is_unchanged();
}

/// The same path with other bytes is another file.
fn uploaded(world: &World) {
    world.edit(|spec| {
        let kubelet = serde_json::json!({"version": "1.35.4", "file": "./payload"});
        spec.add("defaults.kubelet", kubelet)
    });
    work(world, "cat /var/lib/nodegraft/files/kubelet >/root/got");
    for content in ["one", "two"] {
        fs::write(world.path("payload"), content).unwrap();
        world.run(&["up"]).exits(Exit::Done);
        assert_eq!(world.guest(IP, "cat /root/got"), content);
    }
    world.is_unchanged();
}

/// Not a deadline, not a number: the kernel's own line.
fn out_of_memory(world: &World) {
    work(world, "dd if=/dev/zero of=/dev/null bs=200M count=1");
    world
        .run(&["up"])
        .exits(Exit::NodesFailed)
        .says_all(&["ran out of memory in the step `work`", "(dd)"])
        .never_says("was not done within");
}

fn logs_are_kept(world: &World) {
    let logs = fs::read_dir(world.state("scenes/scenes/steps")).unwrap();
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
