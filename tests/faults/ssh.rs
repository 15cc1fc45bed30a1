//! The way to the guest is cut at the n-th packet, goes silent, or is slow.

use std::time::Duration;

use super::bed::{Bed, Follow, Verdict};
use super::ssh_proxy::{SshProxy, Wire};
use super::{Row, places};
use crate::fixture::Exit;

/// Long enough to be caught in, and it leaves a mark of having run once.
const STEP: &str = "for i in 1 2 3; do echo at work $i; sleep 0.3; done\necho ran >> /root/ran\n";

/// `up` through the wire at each place, on a node whose guest runs: without its login and its step done.
/// Each `of`-th place alone, from `part` on: places that take long are shared between tests.
fn every_packet(
    what: &str,
    bed: &Bed,
    wire: fn(u64) -> Wire,
    sample: usize,
    (part, of): (usize, usize),
) {
    let mut row = Row::new(what);
    let total = {
        let proxy = SshProxy::before(&bed.ip, Wire::Whole);
        bed.run(&["up"]).exits(Exit::Done);
        proxy.packets()
    };
    assert!(total > 20, "only {total} packets went through the proxy");
    bed.down();
    let places = places(usize::try_from(total).unwrap(), sample, 1);
    for (index, place) in places.into_iter().skip(part).step_by(of).enumerate() {
        let mut verdict = Verdict::default();
        let proxy = SshProxy::before(&bed.ip, wire(place as u64));
        let up = bed.run(&["up"]);
        verdict.expect("up with the fault", &up, &[Exit::Done, Exit::NodesFailed]);
        drop(proxy);
        bed.after(
            if index % 2 == 0 {
                Follow::Up
            } else {
                Follow::Down
            },
            &mut verdict,
        );
        row.add(&format!("packet {place} of {total}"), verdict);
    }
    row.end();
}

#[test]
#[ignore = "needs the lab: make faults"]
fn the_connection_is_cut_at_a_packet() {
    let bed = Bed::new("fcut", "192.168.3.216").with_step(STEP);
    every_packet("SSH: cut", &bed, Wire::CutAt, 4, (0, 1));
}

fn goes_silent(cluster: &str, ip: &str, what: &str, part: usize) {
    let bed = Bed::new(cluster, ip).with_step(STEP);
    bed.edit(|spec| {
        spec.set("defaults.deadlines.login", "20s")
            .set("defaults.deadlines.step", "10s")
    });
    every_packet(what, &bed, Wire::StallAt, 2, (part, 2));
}

#[test]
#[ignore = "needs the lab: make faults"]
fn the_connection_goes_silent_at_an_odd_packet() {
    goes_silent("fstall", "192.168.3.217", "SSH: silent, one half", 0);
}

#[test]
#[ignore = "needs the lab: make faults"]
fn the_connection_goes_silent_at_an_even_packet() {
    goes_silent("fquiet", "192.168.3.231", "SSH: silent, the other half", 1);
}

#[test]
#[ignore = "needs the lab: make faults"]
fn a_slow_way_is_no_fault() {
    let bed = Bed::new("fslow", "192.168.3.218").with_step(STEP);
    let mut row = Row::new("SSH: each packet 150 ms later");
    let mut verdict = Verdict::default();
    let proxy = SshProxy::before(&bed.ip, Wire::Slow(Duration::from_millis(150)));
    verdict.expect("up on a slow way", &bed.run(&["up"]), &[Exit::Done]);
    assert!(proxy.packets() > 20, "nothing went through the proxy");
    drop(proxy);
    bed.after(Follow::Up, &mut verdict);
    row.add("every packet", verdict);
    row.end();
}
