//! Parses the command line, starts the user interface, runs one command, and turns its end into an exit code.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use nodegraft::cli::{self, Cli, Command};
use nodegraft::commands::{self, Setting, Verdict};
use nodegraft::core::error::{Error, Result, system_words};
use nodegraft::exit::Exit;
use nodegraft::pipeline::stage::Events;
use nodegraft::ui;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (sender, receiver) = unbounded_channel();
    let shown = ui::start(receiver, cli.output, cli.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            ui::print_error(&Error::unfit("starting threads").because(system_words(&error)));
            return code(Exit::Unfit);
        }
    };
    let stop = CancellationToken::new();
    let setting = Setting {
        events: Events::new(sender),
        stop: stop.clone(),
        output: cli.output,
        templates: cli.templates.clone(),
    };
    let result = runtime.block_on(async {
        tokio::spawn(listen_for_ctrl_c(stop));
        dispatch(&cli, &setting).await
    });
    // The display ends with its last sender, before an error is printed below it.
    drop(setting);
    runtime.shutdown_timeout(std::time::Duration::from_secs(30));
    let _ = shown.join();
    match result {
        Ok(Verdict::Done) => code(Exit::Done),
        Ok(Verdict::Reported(kind)) => code(kind.into()),
        Err(error) => {
            if !error.is_shown() {
                ui::print_error(&error);
            }
            code(error.kind().into())
        }
    }
}

/// The map of the tool.
async fn dispatch(cli: &Cli, setting: &Setting) -> Result<Verdict> {
    match &cli.command {
        Command::Up(args) => commands::up::run(args, setting).await,
        Command::Down(args) => commands::down::run(args, setting).await,
        Command::Plan(args) => commands::plan::run(args, setting),
        Command::Status(args) => commands::status::run(args, setting).await,
        Command::Doctor(args) => commands::doctor::run(args, setting).await,
        Command::Create(args) => commands::create::run(args, setting).await,
        Command::Join(args) => commands::join::run(args, setting).await,
        Command::Image(cli::Image::Prepare(args)) => commands::image::prepare(args, setting).await,
        Command::Token(command) => commands::token::run(command, setting).await,
        Command::Access(command) => commands::access::run(command, setting).await,
        Command::Kubeconfig(command) => commands::kubeconfig::run(command, setting).await,
        Command::Ssh(args) => commands::session::run(&args.file, &args.node, &[], setting).await,
        Command::Exec(args) => {
            commands::session::run(&args.file, &args.node, &args.command, setting).await
        }
        Command::Templates(args) => commands::templates::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "nodegraft", &mut script);
            ui::print(&String::from_utf8_lossy(&script))?;
            Ok(Verdict::Done)
        }
    }
}

/// The first Ctrl-C stops after the call under way, and so does a terminal that goes away; the second ends at once.
async fn listen_for_ctrl_c(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut interrupt) = signal(SignalKind::interrupt()) else {
        return;
    };
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        if stop.is_cancelled() {
            ui::note(
                "ended at once: what was under way may be half done, a VM paused; the next `up` or `down` goes on from there",
            );
            std::process::exit(Exit::Interrupted as i32);
        }
        stop.cancel();
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
