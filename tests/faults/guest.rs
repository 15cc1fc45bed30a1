//! The guest goes away in the middle of a step: it reboots, or its host pulls the plug.

use std::time::Duration;

use super::bed::{Bed, Follow, Verdict};
use super::{Row, all};
use crate::fixture::Exit;
use crate::in_lab::eventually;
use crate::in_lab::libvirt::virsh_output;

/// Both roads, or in a sample the longer one.
fn roads() -> &'static [Follow] {
    if all() {
        &[Follow::Up, Follow::Down]
    } else {
        &[Follow::Up]
    }
}

#[test]
#[ignore = "needs the lab: make faults"]
fn it_reboots_in_a_step() {
    // The first run of the step ends with the guest's; the second is through at once.
    let bed = Bed::new("freboot", "192.168.3.220").with_step("if [ ! -e /root/begun ]; then\n  touch /root/begun\n  sync\n  reboot\n  sleep 60\nfi\necho ran >> /root/ran\n");
    let mut row = Row::new("guest: reboots in a step");
    for follow in roads().iter().copied() {
        let mut verdict = Verdict::default();
        verdict.expect(
            "up with the reboot",
            &bed.run(&["up"]),
            &[Exit::Done, Exit::NodesFailed],
        );
        if follow == Follow::Up {
            verdict.expect("the next up", &bed.run(&["up"]), &[Exit::Done]);
            let ran = bed.guest("cat /root/ran");
            if ran.trim() != "ran" {
                verdict
                    .wrong
                    .push(format!("the step was to run once to its end: {ran}"));
            }
        }
        bed.after(follow, &mut verdict);
        row.add("first step", verdict);
    }
    row.end();
}

#[test]
#[ignore = "needs the lab: make faults"]
fn its_plug_is_pulled_in_a_step() {
    let bed = Bed::new("fplug", "192.168.3.221")
        .with_step("if [ ! -e /root/begun ]; then\n  touch /root/begun\n  sync\n  sleep 50\nfi\n");
    bed.edit(|spec| spec.set("defaults.deadlines.step", "10s"));
    let mut row = Row::new("guest: plug pulled in a step");
    for follow in roads().iter().copied() {
        let mut verdict = Verdict::default();
        let up = bed.start(&["up"]);
        eventually(Duration::from_secs(120), "the step to begin", || {
            bed.guest("cat /root/begun && echo begun")
                .contains("begun\n")
        });
        virsh_output(&bed.uri, &["destroy", &bed.node]);
        verdict.expect(
            "up with the plug pulled",
            &bed.end(up),
            &[Exit::Done, Exit::NodesFailed],
        );
        bed.after(follow, &mut verdict);
        row.add("first step", verdict);
    }
    row.end();
}
