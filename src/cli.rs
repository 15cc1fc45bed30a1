//! The command line: types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::core::spec::Span;

/// Clone VMs from a libvirt pool and graft them onto a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(
    name = "nodegraft",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Show step output as it comes
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// What to print on stdout: text for people, json or yaml for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// A directory whose templates and profiles replace the built-in ones
    #[arg(long, global = true, value_name = "DIR", env = "NODEGRAFT_TEMPLATES")]
    pub templates: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
    Yaml,
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
    Status(Status),
    /// Check this host and cluster, and say how to mend each finding
    Doctor(Doctor),
    /// Make one VM: asks on a terminal what the flags leave open
    Create(Box<Create>),
    /// Join a machine that exists, VM or not: the join alone, over SSH
    Join(Join),
    /// Template volumes: prepare one that has no cloud-init
    #[command(subcommand)]
    Image(Image),
    /// Bootstrap tokens: generate, create, list, delete
    #[command(subcommand)]
    Token(Token),
    /// What bootstrap tokens may do: check, grant, revoke
    #[command(subcommand)]
    Access(Access),
    /// Kubeconfig files for joining nodes
    #[command(subcommand)]
    Kubeconfig(Kubeconfig),
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
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
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

    /// What may be bound so that tokens are let in, instead of what the spec says
    #[arg(long, value_enum)]
    pub access: Option<AccessMode>,

    /// What to do with a node that fails
    #[arg(long, value_enum, default_value_t = OnFailure::Keep)]
    pub on_failure: OnFailure,

    /// Drain this node, remove it and make it anew; may be given again, one node goes at a time
    #[arg(long, value_name = "NODE")]
    pub recreate: Vec<String>,

    /// With --recreate: how long evictions may take, per node
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub drain_timeout: Span,

    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Exit with 5 if a node is not as the spec says
    #[arg(long)]
    pub exit_code: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessMode {
    /// Bind our own group if nothing else lets our tokens in
    Ensure,
    /// Bind nothing; refuse to start where access is missing
    Require,
    /// Neither look nor bind
    None,
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

    /// How long evictions may take, per node
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub drain_timeout: Span,

    /// Do not drain: pods go with the node, whatever their disruption budgets say
    #[arg(long)]
    pub force: bool,

    /// Every node of the cluster on this host, also those that the spec no longer names
    #[arg(long, conflicts_with = "nodes")]
    pub all: bool,

    /// Leave the cluster alone, for one that is dead: remove only what is on the host
    #[arg(long)]
    pub without_cluster: bool,

    /// Ask nothing
    #[arg(short, long)]
    pub yes: bool,
}

/// Which cluster a command speaks to
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// A spec whose cluster to use
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    pub file: Option<PathBuf>,

    /// A kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// Its context
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Print a new token; nothing is stored
    Generate,
    /// Store a token in the cluster, so that it lets a kubelet in
    Create(CreateToken),
    /// List the cluster's tokens, without their secrets
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Show the secret halves too
        #[arg(long)]
        show_secrets: bool,
    },
    /// Delete tokens, by token or by id
    Delete {
        #[command(flatten)]
        cluster: ClusterArgs,
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct CreateToken {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The token; one is generated without it
    pub token: Option<String>,

    /// How long it lives; 0 means for ever
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub ttl: String,

    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,

    /// A group its bearer is in besides system:bootstrappers; must start with `system:bootstrappers:`
    #[arg(
        long = "extra-group",
        visible_alias = "groups",
        value_name = "GROUP",
        value_delimiter = ','
    )]
    pub extra_groups: Vec<String>,

    /// What it may be used for
    #[arg(
        long,
        value_name = "USAGE",
        value_delimiter = ',',
        default_value = "signing,authentication"
    )]
    pub usages: Vec<String>,

    /// Print the Secret and store nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum Access {
    /// Who may ask for certificates, and who approves them, as the API server answers
    Check {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// A group that tokens carry besides system:bootstrappers
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Let tokens ask for certificates, and have client requests and renewals approved
    Grant {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// The group to let in
        #[arg(long, value_name = "GROUP", default_value = "system:bootstrappers")]
        group: String,
        /// Bind only the right to ask; approve by hand, or by nodegraft
        #[arg(long)]
        no_auto_approve: bool,
    },
    /// Remove what `grant` made, and only that
    Revoke {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum Kubeconfig {
    /// The file a kubelet starts with: the cluster's CA and address, and a token
    Bootstrap {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// The token, as `token create` printed it
        #[arg(
            long,
            value_name = "TOKEN",
            env = "NODEGRAFT_TOKEN",
            hide_env_values = true
        )]
        token: String,
        /// The API server's URL as the node reaches it
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// Write it here, readable by nobody else, instead of to stdout
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Print every rendered file too, secrets excepted
    #[arg(long)]
    pub show: bool,
}

/// Where templates and VMs are
#[derive(Debug, Args)]
pub struct HostArgs {
    /// libvirt
    #[arg(long, default_value = "qemu:///system", env = "LIBVIRT_DEFAULT_URI")]
    pub uri: String,

    /// The pool of the template, and of what is made from it
    #[arg(long, default_value = "default")]
    pub pool: String,
}

#[derive(Debug, Args)]
pub struct Create {
    /// Its name
    #[arg(long)]
    pub name: Option<String>,

    /// Its disk, in G or with a unit
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,

    /// Its memory, in M or with a unit
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,

    /// Its virtual CPUs
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,

    /// Its address, with or without a prefix length
    #[arg(long)]
    pub address: Option<String>,

    /// The netmask, where the address has no prefix length
    #[arg(long)]
    pub netmask: Option<String>,

    /// The default gateway
    #[arg(long)]
    pub gateway: Option<String>,

    /// The DNS server
    #[arg(long)]
    pub dns: Option<String>,

    /// The template volume to clone
    #[arg(long, value_name = "VOLUME")]
    pub template: Option<String>,

    /// Who configures the guest: what the image has, or our unit put into the clone
    #[arg(long, value_enum)]
    pub first_boot: Option<FirstBoot>,

    #[command(flatten)]
    pub host: HostArgs,

    /// A bridge of the host to plug it into
    #[arg(long, conflicts_with = "network")]
    pub bridge: Option<String>,

    /// A libvirt network to plug it into [default: default]
    #[arg(long)]
    pub network: Option<String>,

    /// The cluster's name in marks and volume names
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster_name: String,

    /// Take the defaults and ask nothing that has one
    #[arg(short, long)]
    pub yes: bool,

    /// Remove what this run made if it fails
    #[arg(long)]
    pub undo: bool,

    /// Print the spec it amounts to, and make nothing
    #[arg(long)]
    pub print_spec: bool,

    /// Go on with steps and join
    #[arg(long)]
    pub join: bool,

    /// With --join: the cluster [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// With --join: the steps
    #[arg(long)]
    pub profile: Option<String>,

    /// With --join: the kubelet's version
    #[arg(long, value_name = "VERSION")]
    pub kubelet: Option<String>,

    /// With --join: its package
    #[arg(long, value_name = "PACKAGE")]
    pub kubelet_package: Option<String>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// `[user@]host[:port]`, with a kubelet on it; your own SSH keys and known_hosts are used
    #[arg(value_name = "HOST")]
    pub host: String,

    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// The Node's name [default: the kubelet's --hostname-override, else the host name]
    #[arg(long)]
    pub name: Option<String>,

    /// The API server's URL as the machine reaches it [default: that of the kubeconfig]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// What may be bound so that the token is let in [default: ensure, or what the spec says]
    #[arg(long, value_enum)]
    pub access: Option<AccessMode>,

    /// Clear what an earlier membership left: kubelet.conf and /var/lib/kubelet/pki
    #[arg(long)]
    pub reset: bool,

    /// A label of the Node, as key=value
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,

    /// Approve the kubelet's requests for a serving certificate too, if they are for its own name and address
    #[arg(long)]
    pub approve_serving: bool,

    /// How long the join may take, and then how long Ready may
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FirstBoot {
    /// cloud-init, or a template that `image prepare` made
    Image,
    /// For an image that has neither
    Inject,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Copy a template volume and put the first-boot unit into the copy; the template stays as it is
    Prepare(Prepare),
}

#[derive(Debug, Args)]
pub struct Prepare {
    /// The template volume
    pub volume: String,

    /// The new volume's name [default: VOLUME with `.firstboot` before its suffix]
    #[arg(long = "as", value_name = "NAME")]
    pub target: Option<String>,

    #[command(flatten)]
    pub host: HostArgs,
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
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
    pub file: PathBuf,

    /// The node
    pub node: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// The spec
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
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
