//! The command line: types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::core::spec::Span;

const EXIT_CODES: &str = "\
Exit codes:
    0  success
    1  bug in nodegraft
    2  usage error
    3  spec or plan refused, nothing touched
    4  host or cluster unfit, nothing created
    5  some nodes failed, or differ (`status --exit-code`)
    6  teardown left something behind
  130  interrupted";

/// Clone VMs from a libvirt pool and join them to a Kubernetes cluster
#[derive(Debug, Parser)]
#[command(
    name = "nodegraft",
    version,
    max_term_width = 80,
    arg_required_else_help = true,
    help_expected = true,
    after_long_help = EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Stream the output of steps
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// Output format on stdout
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,

    /// Use the templates and profiles in DIR instead of the built-in ones
    #[arg(long, global = true, value_name = "DIR", env = "NODEGRAFT_TEMPLATES")]
    pub templates: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs; events, one per line
    Json,
    /// For programs
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring nodes up: clone, boot, provision, join, wait for Ready
    Up(Up),
    /// Drain and delete nodes, with everything created for them
    Down(Down),
    /// Show what `up` would do, from the spec alone
    Plan(Plan),
    /// Compare each node with the spec, in libvirt and in the cluster
    Status(Status),
    /// Check the host and the cluster, and suggest a fix for each finding
    Doctor(Doctor),
    /// Create one VM, prompting for what no flag sets
    Create(Box<Create>),
    /// Join an existing machine to the cluster, over SSH
    Join(Join),
    /// Prepare template volumes
    #[command(subcommand)]
    Image(Image),
    /// Manage bootstrap tokens
    #[command(subcommand)]
    Token(Token),
    /// Manage what bootstrap tokens may do
    #[command(subcommand)]
    Access(Access),
    /// Write kubeconfig files for joining nodes
    #[command(subcommand)]
    Kubeconfig(Kubeconfig),
    /// Log in to a node, checking its pinned host key
    Ssh(Ssh),
    /// Run a command on a node
    Exec(Exec),
    /// Write the built-in templates and profiles to a directory
    Templates(Templates),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Cluster spec
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
    pub file: PathBuf,

    /// Nodes to act on [default: all in the spec]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Number of nodes to work on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,

    /// How to give bootstrap tokens access [default: ensure, or as in the spec]
    #[arg(long, value_enum)]
    pub access: Option<AccessMode>,

    /// What to do with a failed node
    #[arg(long, value_enum, default_value_t = OnFailure::Keep)]
    pub on_failure: OnFailure,

    /// Drain, delete and recreate NODE; repeatable, one node at a time
    #[arg(long, value_name = "NODE")]
    pub recreate: Vec<String>,

    /// With --recreate: drain timeout per node
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub drain_timeout: Span,

    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Exit with 5 if a node differs from the spec
    #[arg(long)]
    pub exit_code: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessMode {
    /// Bind a group of our own if tokens have no access yet
    Ensure,
    /// Bind nothing, and fail if tokens have no access
    Require,
    /// Neither check nor bind
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Keep it; the next `up` resumes it
    Keep,
    /// Delete what this run created
    Undo,
}

#[derive(Debug, Args)]
pub struct Down {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Number of nodes to work on at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,

    /// Drain timeout per node
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub drain_timeout: Span,

    /// Skip the drain, ignoring disruption budgets
    #[arg(long)]
    pub force: bool,

    /// Also delete nodes of this cluster that the spec no longer lists
    #[arg(long, conflicts_with = "nodes")]
    pub all: bool,

    /// Delete only what is on the host, for a cluster that is gone
    #[arg(long)]
    pub without_cluster: bool,

    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

/// Which cluster a command talks to
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Use the cluster of this spec
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    pub file: Option<PathBuf>,

    /// Kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// Context in the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Print a new random token without storing it
    Generate,
    /// Store a token in the cluster
    Create(CreateToken),
    /// List the tokens in the cluster, without their secrets
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Show the secrets too
        #[arg(long)]
        show_secrets: bool,
    },
    /// Delete tokens
    Delete {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Tokens or token IDs
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct CreateToken {
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Token to store [default: a new random one]
    pub token: Option<String>,

    /// Time to live; 0 never expires
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub ttl: String,

    /// Description stored with the token
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,

    /// Authenticate in this group too; must start with `system:bootstrappers:`
    #[arg(
        long = "extra-group",
        visible_alias = "groups",
        value_name = "GROUP",
        value_delimiter = ','
    )]
    pub extra_groups: Vec<String>,

    /// Allowed usages
    #[arg(
        long,
        value_name = "USAGE",
        value_delimiter = ',',
        default_value = "signing,authentication"
    )]
    pub usages: Vec<String>,

    /// Print the Secret without storing it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum Access {
    /// Ask the API server who may request certificates and who approves them
    Check {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Check a token that is in this group too
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Let tokens request certificates, and auto-approve requests and renewals
    Grant {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Group to grant access to
        #[arg(long, value_name = "GROUP", default_value = "system:bootstrappers")]
        group: String,
        /// Grant only the right to request; approve manually or with nodegraft
        #[arg(long)]
        no_auto_approve: bool,
    },
    /// Delete the bindings that `grant` created, and no others
    Revoke {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum Kubeconfig {
    /// Print a bootstrap kubeconfig: the cluster's CA and address, and a token
    Bootstrap {
        #[command(flatten)]
        cluster: ClusterArgs,
        /// Token, as printed by `token create`
        #[arg(
            long,
            value_name = "TOKEN",
            env = "NODEGRAFT_TOKEN",
            hide_env_values = true
        )]
        token: String,
        /// API server URL as seen from the node [default: that of the kubeconfig]
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// Write it to a new FILE with mode 0600 instead of stdout
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub spec: SpecArgs,

    /// Print every rendered file too, with secrets redacted
    #[arg(long)]
    pub show: bool,
}

/// Where templates and VMs are
#[derive(Debug, Args)]
pub struct HostArgs {
    /// libvirt connection URI
    #[arg(long, default_value = "qemu:///system", env = "LIBVIRT_DEFAULT_URI")]
    pub uri: String,

    /// Storage pool of the template and of the new volumes
    #[arg(long, default_value = "default")]
    pub pool: String,
}

#[derive(Debug, Args)]
pub struct Create {
    /// VM name
    #[arg(long)]
    pub name: Option<String>,

    /// Disk size, in GiB unless a unit is given
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,

    /// Memory size, in MiB unless a unit is given
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,

    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,

    /// IP address, with or without a prefix length
    #[arg(long)]
    pub address: Option<String>,

    /// Netmask, if the address has no prefix length
    #[arg(long)]
    pub netmask: Option<String>,

    /// Default gateway
    #[arg(long)]
    pub gateway: Option<String>,

    /// DNS server
    #[arg(long)]
    pub dns: Option<String>,

    /// Template volume to clone
    #[arg(long, value_name = "VOLUME")]
    pub template: Option<String>,

    /// What configures the guest on its first boot
    #[arg(long, value_enum)]
    pub first_boot: Option<FirstBoot>,

    #[command(flatten)]
    pub host: HostArgs,

    /// Host bridge to attach it to
    #[arg(long, conflicts_with = "network")]
    pub bridge: Option<String>,

    /// libvirt network to attach it to [default: default]
    #[arg(long)]
    pub network: Option<String>,

    /// Cluster name used in marks and volume names
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster_name: String,

    /// Accept the defaults without prompting
    #[arg(short, long)]
    pub yes: bool,

    /// Delete what this run created if it fails
    #[arg(long)]
    pub undo: bool,

    /// Print the equivalent spec without creating anything
    #[arg(long)]
    pub print_spec: bool,

    /// Run the steps and join the cluster too
    #[arg(long)]
    pub join: bool,

    /// With --join: kubeconfig [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// With --join: profile to run
    #[arg(long)]
    pub profile: Option<String>,

    /// With --join: kubelet version
    #[arg(long, value_name = "VERSION")]
    pub kubelet: Option<String>,

    /// With --join: kubelet package
    #[arg(long, value_name = "PACKAGE")]
    pub kubelet_package: Option<String>,
}

#[derive(Debug, Args)]
pub struct Join {
    /// Machine with a kubelet, `[user@]host[:port]`; uses your SSH keys and known_hosts
    #[arg(value_name = "HOST")]
    pub host: String,

    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// Node name [default: the kubelet's --hostname-override, else the host name]
    #[arg(long)]
    pub name: Option<String>,

    /// API server URL as seen from the machine [default: that of the kubeconfig]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// How to give the token access [default: ensure, or as in the spec]
    #[arg(long, value_enum)]
    pub access: Option<AccessMode>,

    /// Delete the identity of an earlier join first: kubelet.conf and its pki
    #[arg(long)]
    pub reset: bool,

    /// Label to set on the Node; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,

    /// Also approve serving certificates for its own name and address
    #[arg(long)]
    pub approve_serving: bool,

    /// Timeout of the join, and again of the wait for Ready
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FirstBoot {
    /// cloud-init, or the first-boot unit of a prepared template
    Image,
    /// The first-boot unit, installed in each clone
    Inject,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Copy a template volume and install the first-boot unit in the copy
    Prepare(Prepare),
}

#[derive(Debug, Args)]
pub struct Prepare {
    /// Template volume to copy
    pub volume: String,

    /// Name of the copy [default: VOLUME with `.firstboot` before its suffix]
    #[arg(long = "as", value_name = "NAME")]
    pub target: Option<String>,

    #[command(flatten)]
    pub host: HostArgs,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Spec whose host and cluster to check [default: qemu:///system, $KUBECONFIG]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Ssh {
    /// Cluster spec
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
    pub file: PathBuf,

    /// Node name
    pub node: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Cluster spec
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "cluster.yaml",
        env = "NODEGRAFT_SPEC"
    )]
    pub file: PathBuf,

    /// Node name
    pub node: String,

    /// Command and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Templates {
    /// New directory to write them to
    pub dir: PathBuf,
}
