//! Faults: what happens to other people's things, and to ours, when libvirt, SSH, the API server, the disk or the guest
//! fails in the middle. `make faults` tries every place and writes `docs/faults.md`; `make test` tries a sample.
//! `bed` is one tiny node and its neighbours; `preload`, `ssh_proxy` and `api_proxy` break things; the rest are the tests.

pub mod api_proxy;
pub mod bed;
pub mod bystanders;
pub mod preload;
pub mod ssh_proxy;

mod api;
mod cost;
mod guest;
mod hosts;
mod libvirt;
mod ssh;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use bed::{Bed, Follow, Verdict};

/// Whether every place is tried, or a sample.
pub fn all() -> bool {
    match std::env::var("NODEGRAFT_FAULTS").as_deref() {
        Ok("all") => true,
        Ok("sample") | Err(_) => false,
        Ok(other) => panic!("NODEGRAFT_FAULTS is `sample` or `all`, not `{other}`"),
    }
}

/// The places to try of `total`, counted from 1: all of them, or `sample` spread evenly, always the same ones.
/// `shift` lets kinds of faults take different places.
pub fn places(total: usize, sample: usize, shift: usize) -> Vec<usize> {
    if all() || sample >= total {
        return (1..=total).collect();
    }
    (0..sample)
        .map(|index| (index * total + (shift * total / 4) % total) / sample % total + 1)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The row of the table for one kind of fault.
pub struct Row {
    fault: String,
    tried: usize,
    reached: usize,
    left: usize,
    touched: usize,
    wrong: Vec<String>,
}

impl Row {
    pub fn new(fault: impl Into<String>) -> Self {
        Self {
            fault: fault.into(),
            tried: 0,
            reached: 0,
            left: 0,
            touched: 0,
            wrong: Vec::new(),
        }
    }

    pub fn add(&mut self, place: &str, verdict: Verdict) {
        self.tried += 1;
        self.reached += usize::from(verdict.wrong.is_empty());
        self.left += usize::from(!verdict.left.is_empty());
        self.touched += usize::from(!verdict.touched.is_empty());
        let all = verdict
            .wrong
            .iter()
            .chain(verdict.left.iter())
            .chain(verdict.touched.iter());
        for what in all {
            eprintln!("[{}] {place}: {what}", self.fault);
            self.wrong.push(format!("{place}: {what}"));
        }
    }

    /// Leaves the row for the table, and fails if any place did.
    pub fn end(self) {
        Self::end_all(vec![self]);
    }

    /// The same for several: one that failed does not keep the others out of the table.
    pub fn end_all(rows: Vec<Self>) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.tsv");
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        let mut wrong = Vec::new();
        for row in rows {
            assert!(row.tried > 0, "{}: nothing was tried", row.fault);
            // One write: other tests append to it too.
            let line = format!(
                "{}\t{}\t{}\t{}\t{}\n",
                row.fault, row.tried, row.reached, row.left, row.touched
            );
            file.write_all(line.as_bytes()).unwrap();
            wrong.extend(
                row.wrong
                    .iter()
                    .map(|what| format!("{}: {what}", row.fault)),
            );
        }
        assert!(
            wrong.is_empty(),
            "{} things went wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

/// Runs `up` through a fault at each place, and then the one half on to the goal and the other straight `down`.
pub fn up_through(bed: &Bed, row: &mut Row, places: &[(String, Vec<(&'static str, String)>)]) {
    for (index, (place, env)) in places.iter().enumerate() {
        let follow = if index % 2 == 0 {
            Follow::Up
        } else {
            Follow::Down
        };
        let verdict = bed.up_through(env, follow);
        row.add(place, verdict);
    }
}

#[test]
fn a_sample_is_spread_and_always_the_same() {
    if all() {
        return;
    }
    assert_eq!(places(120, 4, 0), [1, 31, 61, 91]);
    assert_eq!(places(120, 4, 1), [8, 38, 68, 98]);
    assert_eq!(places(3, 4, 2), [1, 2, 3]);
    for shift in 0..4 {
        assert!(
            places(121, 6, shift)
                .iter()
                .all(|place| (1..=121).contains(place))
        );
        assert_eq!(places(121, 6, shift).len(), 6);
    }
}
