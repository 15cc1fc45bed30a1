//! The command line: types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Clone VMs from a libvirt pool and graft them onto a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(name = "nodegraft", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Show step output as it comes
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// What to print on stdout: text for people, json for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// A directory whose templates and profiles replace the built-in ones
    #[arg(long, global = true, value_name = "DIR", env = "NODEGRAFT_TEMPLATES")]
    pub templates: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring nodes up: clone, boot, provision, join, Ready
    Up(Up),
    /// Take nodes down and leave nothing behind
    Down(Down),
    /// Show all that `up` would do; touches nothing
    Plan(Plan),
    /// Compare spec, libvirt and cluster for each node
    Status(SpecArgs),
    /// Check this host and cluster, and say how to mend each finding
    Doctor(Doctor),
    /// Log in to a node, its host key known
    Ssh(Ssh),
    /// Run a command on a node
    Exec(Exec),
    /// Write the built-in templates to a directory, to read or change
    Templates(Templates),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct SpecArgs {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml", env = "NODEGRAFT_SPEC")]
    pub file: PathBuf,

    /// Only these nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// How many nodes to work on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,

    /// What to do with a node that fails
    #[arg(long, value_enum, default_value_t = OnFailure::Keep)]
    pub on_failure: OnFailure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Keep it as it is; the next `up` goes on there
    Keep,
    /// Remove just what this run made
    Undo,
}

#[derive(Debug, Args)]
pub struct Down {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// How many nodes to work on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Print every rendered file too, secrets excepted
    #[arg(long)]
    pub show: bool,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// The spec whose host and cluster to check; without one, the defaults
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Ssh {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml", env = "NODEGRAFT_SPEC")]
    pub file: PathBuf,

    /// The node
    pub node: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// The spec
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml", env = "NODEGRAFT_SPEC")]
    pub file: PathBuf,

    /// The node
    pub node: String,

    /// The command
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Templates {
    /// Where to write them
    pub dir: PathBuf,
}
