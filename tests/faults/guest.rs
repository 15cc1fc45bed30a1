//! The guest goes away in the middle of a step: it reboots, or its host pulls the plug.

use std::time::Duration;

use super::bed::{Bed, Follow, Verdict, virsh_output};
use super::{Row, all};
use crate::in_lab::eventually;

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
    let bed = Bed::new("freboot", "192.168.3.220");
    // The first run of the step ends with the guest's; the second is through at once.
    bed.step("if [ ! -e /root/begun ]; then\n  touch /root/begun\n  sync\n  reboot\n  sleep 60\nfi\necho ran >> /root/ran\n");
    let mut row = Row::new("guest: reboots in a step");
    for follow in roads().iter().copied() {
        let mut verdict = Verdict::default();
        verdict.expect("up with the reboot", &bed.run(&["up"]), &[0, 5]);
        if follow == Follow::Up {
            verdict.expect("the next up", &bed.run(&["up"]), &[0]);
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
    let bed = Bed::new("fplug", "192.168.3.221");
    bed.step("if [ ! -e /root/begun ]; then\n  touch /root/begun\n  sync\n  sleep 50\nfi\n");
    bed.edit(|spec| spec.replace("step: 1m", "step: 10s"));
    let mut row = Row::new("guest: plug pulled in a step");
    for follow in roads().iter().copied() {
        let mut verdict = Verdict::default();
        let up = bed.start(&["up"], &[]);
        eventually(Duration::from_secs(120), "the step to begin", || {
            bed.guest("cat /root/begun && echo begun")
                .contains("begun\n")
        });
        virsh_output(&bed.uri, &["destroy", &bed.node]);
        verdict.expect(
            "up with the plug pulled",
            &up.end(Duration::from_secs(240)),
            &[0, 5],
        );
        bed.after(follow, &mut verdict);
        row.add("first step", verdict);
    }
    row.end();
}
