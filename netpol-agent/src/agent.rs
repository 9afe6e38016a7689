//! Puts the rooms together: one thread for netlink notifications, one for the reconcile loop with all its bpf calls,
//! and a small runtime for the source and for HTTP. Whoever ends first ends the agent; what is in force stays.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use crate::config::Config;
use crate::interfaces::netlink;
use crate::metrics::State;
use crate::reconcile::{Command, Engine};
use crate::{http, source};

/// Commands that may wait for the reconcile loop.
const COMMANDS: usize = 4096;

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
    if commands.send(Command::Stop).await.is_ok() {
        let _ended = engine.await;
    }
    Ok(())
}

/// Starts following links, and returns once notifications are under way.
fn follow_links(commands: mpsc::Sender<Command>) -> anyhow::Result<()> {
    let (started, ready) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("netlink".into())
        .spawn(move || {
            let result = netlink::follow(
                || {
                    let _receiver_waits = started.send(());
                },
                |event| commands.blocking_send(Command::Link(event)).is_ok(),
            );
            if let Err(error) = result {
                // Without notifications no new pod would be seen: better end and be started again.
                let _gone = commands.blocking_send(Command::Blind(error));
            }
        })
        .context("starting a thread")?;
    ready.recv().context("following links did not start")
}

/// Runs the reconcile loop on a thread of its own.
fn spawn_engine(
    config: Arc<Config>,
    state: Arc<State>,
    inbox: mpsc::Receiver<Command>,
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

async fn forward(mut incoming: mpsc::Receiver<source::Envelope>, commands: mpsc::Sender<Command>) {
    while let Some(envelope) = incoming.recv().await {
        if commands.send(Command::Source(envelope)).await.is_err() {
            return;
        }
    }
}
