//! Puts the rooms together: one thread for netlink notifications, one for the reconcile loop with all its bpf calls,
//! and a small runtime for the source and for HTTP. Whoever ends first ends the agent; what is in force stays.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use crate::cli::{Command, Uninstall};
use crate::config::Config;
use crate::interfaces::netlink;
use crate::metrics::State;
use crate::reconcile::{self, Engine};
use crate::{dataplane, guard, http, source, telemetry};

/// Commands that may wait for the reconcile loop.
const COMMANDS: usize = 4096;

/// Carries out what the command line asks for.
#[must_use]
pub fn main(command: Command) -> ExitCode {
    let result = match command {
        Command::Run(config) => start(*config),
        Command::Uninstall(uninstall) => remove(&uninstall),
        Command::Version => {
            println!("netpol-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log)?;
    info!(version = env!("CARGO_PKG_VERSION"), node = %config.node, source = ?config.source, "netpol-agent");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?
        .block_on(run(config))
}

fn remove(uninstall: &Uninstall) -> anyhow::Result<()> {
    telemetry::init(&uninstall.log)?;
    // First: without programs nothing is stamped, and an armed guard would drop it all.
    guard::remove()?;
    let links = netlink::Netlink::open()?.links()?;
    dataplane::uninstall(&uninstall.bpf_root, links.iter().map(|link| link.index))?;
    match std::fs::remove_dir_all(&uninstall.runtime_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", uninstall.runtime_dir.display()));
        }
        _ => {}
    }
    info!("removed every program, link, map, runtime file, and the table of nftables");
    Ok(())
}

/// Enforces until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let state = State::new();
    state.keep_retired_in(&config.runtime_dir);
    let listener = http::bind(config.metrics_address).await?;
    let (commands, inbox) = mpsc::channel(COMMANDS);

    follow_links(commands.clone())?;
    let (events, incoming) = mpsc::channel(source::CHANNEL_CAPACITY);
    let mut engine = spawn_engine(Arc::clone(&config), Arc::clone(&state), inbox)?;
    let forward = forward(incoming, commands.clone());

    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::select! {
        biased;
        _ = terminate.recv() => info!("SIGTERM: leaving everything in force"),
        _ = interrupt.recv() => info!("SIGINT: leaving everything in force"),
        ended = &mut engine => return ended.context("the reconcile loop died")?.context("reconcile loop"),
        ended = source::run(&config.source, events, Arc::clone(&state)) => match ended? {},
        () = forward => anyhow::bail!("the source's channel closed"),
        never = http::serve(listener, state) => match never {},
    }
    // Only the loop holds maps; let it finish the write that it is in.
    if commands.send(reconcile::Command::Stop).await.is_ok() {
        let _ended = engine.await;
    }
    Ok(())
}

/// Starts following links, and returns once notifications are under way.
fn follow_links(commands: mpsc::Sender<reconcile::Command>) -> anyhow::Result<()> {
    let (started, ready) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("netlink".into())
        .spawn(move || {
            let result = netlink::follow(
                || {
                    let _receiver_waits = started.send(());
                },
                |event| commands.blocking_send(reconcile::Command::Link(event)).is_ok(),
            );
            if let Err(error) = result {
                // Without notifications no new pod would be seen: better end and be started again.
                let _gone = commands.blocking_send(reconcile::Command::Blind(error));
            }
        })
        .context("starting a thread")?;
    ready.recv().context("following links did not start")
}

/// Runs the reconcile loop on a thread of its own.
fn spawn_engine(
    config: Arc<Config>,
    state: Arc<State>,
    inbox: mpsc::Receiver<reconcile::Command>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (ended, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("reconcile".into())
        .spawn(move || {
            let outcome = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .context("starting a runtime")
                .and_then(|runtime| {
                    let engine = Engine::start(config, state)?;
                    runtime.block_on(engine.run(inbox))
                });
            let _nobody_waits = ended.send(outcome);
        })
        .context("starting a thread")?;
    Ok(result)
}

async fn forward(mut incoming: mpsc::Receiver<source::Envelope>, commands: mpsc::Sender<reconcile::Command>) {
    while let Some(envelope) = incoming.recv().await {
        if commands.send(reconcile::Command::Source(Box::new(envelope))).await.is_err() {
            return;
        }
    }
}
