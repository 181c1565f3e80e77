//! What operators do to actors and dead letters, behind `/kernel`: `actor.*`, `dead.*`. And the record of what they do
//! elsewhere ([`ActCall`]).
//!
//! ```text
//! say what it touches ─► dry run? that is the answer ─► audit.begin (synced) ─► do it ─► audit.end ─► answer
//!                                                       audit.begin ─► let the call go on ─► audit.end ─► its answer
//! ```
//!
//! Each runs beside the actor `/kernel`, which stays free to answer; what is under way is bounded by the sessions' limits
//! and by the audit record's. `/kernel` and `/audit` themselves can be restarted, but neither paused nor drained: nobody
//! could resume them.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion_bus::{ActCall, Address, Call, DeadLetter, Gate, InHand, Item, Pending, Responder};
use eclosion_kernel::Kernel;
use eclosion_kernel::supervision::{End, Ended};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::{actor, audit, dead, kernel as kernel_ops};
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::view::{ActorRow, ActorState};
use eclosion_schemas::{Code, Error};
use tokio::sync::watch;

type Answer = Result<Box<dyn Any + Send>, Error>;

/// Between two looks at a mailbox that drains. A waiting list in every mailbox would cost every message.
const LOOK: Duration = Duration::from_millis(20);
/// How long a dead letter that was sent again is waited for.
const REPLAY: Duration = Duration::from_secs(5);
/// What a kernel that is to stop waits for its record.
const RECORD_STOP: Duration = Duration::from_secs(2);
/// Before its deadline a drain says how far it has come.
const SPARE: Duration = Duration::from_millis(200);

/// What is done to an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Restart,
    Kill,
    Pause,
    Resume,
    Drain,
}

impl Verb {
    fn of(operation: &str) -> Option<Self> {
        Some(match operation {
            actor::Restart::NAME => Self::Restart,
            actor::Kill::NAME => Self::Kill,
            actor::Pause::NAME => Self::Pause,
            actor::Resume::NAME => Self::Resume,
            actor::Drain::NAME => Self::Drain,
            _ => return None,
        })
    }

    fn request(self, message: &InHand) -> Option<actor::ActRequest> {
        match self {
            Self::Restart => message.request::<actor::Restart>(),
            Self::Kill => message.request::<actor::Kill>(),
            Self::Pause => message.request::<actor::Pause>(),
            Self::Resume => message.request::<actor::Resume>(),
            Self::Drain => message.request::<actor::Drain>(),
        }
        .cloned()
    }

    /// The sentence of the blast radius.
    fn text(self, row: &ActorRow, folds: bool) -> String {
        let waiting = match row.depth {
            0 => "Nothing waits".into(),
            1 => "1 message waits".into(),
            more => format!("{more} messages wait"),
        };
        let then = match self {
            Self::Restart if folds => {
                "The next life goes on with the same mailbox and folds its state from the journal."
            }
            Self::Restart => {
                "The next life goes on with the same mailbox; it has no journal, and what it kept in memory is gone."
            }
            Self::Kill => {
                "What is in hand is delivered once more to the next life; this counts as a death against the restart budget."
            }
            Self::Pause => "What comes waits, too, up to the mailbox's capacity and each message's deadline.",
            Self::Resume => "It takes messages again, oldest first.",
            Self::Drain => "That is handled; what comes is refused, to be sent again later.",
        };
        format!("{waiting}. {then}")
    }
}

/// Says that the kernel is to stop, once that is recorded. A kernel that can record nothing any more stops as well.
pub(crate) fn stop(kernel: &Kernel, message: InHand, stop: watch::Sender<bool>) {
    let operator = Operator::of(kernel, &message);
    let responder = message.finish();
    tokio::spawn(async move {
        let recorded = async {
            let act = operator.begin("the kernel", "", "").await?;
            operator.end(act, None).await;
            Ok::<(), Error>(())
        };
        if !matches!(tokio::time::timeout(RECORD_STOP, recorded).await, Ok(Ok(()))) {
            tracing::warn!("that the kernel was told to stop is not recorded");
        }
        responder.reply(Ok(Box::new(kernel_ops::Empty {})));
        // After the reply: stopping ends the session that asked for it.
        stop.send_replace(true);
    });
}

/// Serves the operation if it is one of these; hands the message back otherwise.
pub(crate) fn serve(kernel: &Kernel, message: InHand) -> Result<(), InHand> {
    let operation = message.operation;
    let operator = Operator::of(kernel, &message);
    if let Some(recorded) = message.request_any().downcast_ref::<ActCall>() {
        let (act, call) = (recorded.act.clone(), recorded.take());
        let responder = message.finish();
        tokio::spawn(async move { operator.record(act, call, responder).await });
        return Ok(());
    }
    if let Some((verb, request)) = Verb::of(operation).and_then(|verb| Some((verb, verb.request(&message)?)))
    {
        run(message.finish(), async move { operator.act(verb, request).await });
        return Ok(());
    }
    let request = match operation {
        dead::Replay::NAME => message.request::<dead::Replay>().cloned(),
        dead::Drop::NAME => message.request::<dead::Drop>().cloned(),
        _ => None,
    };
    match request {
        Some(request) => {
            run(message.finish(), async move { operator.letter(request).await });
            Ok(())
        }
        None => Err(message),
    }
}

fn run(responder: Responder, work: impl Future<Output = Answer> + Send + 'static) {
    tokio::spawn(async move { responder.reply(work.await) });
}

struct Operator {
    kernel: Kernel,
    operation: &'static str,
    caller: Option<Arc<str>>,
    deadline: Instant,
}

impl Operator {
    fn of(kernel: &Kernel, message: &InHand) -> Self {
        let (operation, context) = (message.operation, &message.context);
        Self { kernel: kernel.clone(), operation, caller: context.caller.clone(), deadline: context.deadline }
    }

    async fn act(self, verb: Verb, request: actor::ActRequest) -> Answer {
        let met = self.meets(verb, &request.address);
        let (address, mut reply) =
            self.unless_refused(met, &request.address, &request.reason, request.dry_run).await?;
        if !request.dry_run {
            let act = self.begin(&reply.address, &request.reason, &reply.blast.text).await?;
            let done = self.perform(verb, &address, &request.reason).await;
            self.end(act, done.as_ref().err()).await;
            (reply.incarnation, reply.act, reply.done) = (done?, Some(act), true);
        }
        Ok(Box::new(reply))
    }

    /// What it would touch.
    fn meets(&self, verb: Verb, address: &str) -> Result<(Address, actor::ActReply), Error> {
        let row = row(&self.kernel, address)?;
        let address = Address::new(&row.address)?;
        self.refuse(verb, &address)?;
        let blast = actor::Blast {
            state: row.state,
            queued: row.depth,
            in_hand: row.in_hand,
            current: row.current.clone(),
            text: verb.text(&row, self.kernel.folds(&row.address)),
        };
        Ok((
            address,
            actor::ActReply { address: row.address, blast, done: false, act: None, incarnation: None },
        ))
    }

    /// An act that is refused is in the record as well; a dry run of it is not.
    async fn unless_refused<T>(
        &self,
        met: Result<T, Error>,
        target: &str,
        reason: &str,
        dry_run: bool,
    ) -> Result<T, Error> {
        let refusal = match met {
            Ok(met) => return Ok(met),
            Err(refusal) => refusal,
        };
        if !dry_run && let Ok(act) = self.begin(target, reason, "").await {
            self.end(act, Some(&refusal)).await;
        }
        Err(refusal)
    }

    /// What the act would be refused with is what a dry run of it says.
    fn refuse(&self, verb: Verb, address: &Address) -> Result<(), Error> {
        refuse_what_cannot_be_undone(verb, address.as_str())?;
        let refusal = match verb {
            Verb::Restart => self.kernel.refuses_end(address, End::Restart),
            Verb::Kill => self.kernel.refuses_end(address, End::Kill),
            Verb::Pause | Verb::Resume | Verb::Drain => None,
        };
        match refusal {
            // A holder ends with its service; what begins the next one is the service.
            Some(refusal) => Err(match address.as_str().strip_prefix("/services/") {
                Some(name) if refusal.reason == "actor.temporary" => {
                    refusal.help(format!("eclosion service restart {name}"))
                }
                _ => refusal,
            }),
            None => Ok(()),
        }
    }

    /// Gives the number of the life that has begun, if one has.
    async fn perform(&self, verb: Verb, address: &Address, reason: &str) -> Result<Option<u32>, Error> {
        let why = |word: &str| match reason {
            "" => format!("{word} by an operator"),
            reason => format!("{word} by an operator: {reason}"),
        };
        match verb {
            Verb::Restart => self.finish(address, End::Restart, why("restarted")).await,
            Verb::Kill => self.finish(address, End::Kill, why("killed")).await,
            Verb::Pause => self.gate(address, Gate::Paused),
            Verb::Resume => self.gate(address, Gate::Open),
            Verb::Drain => {
                self.gate(address, Gate::Draining)?;
                self.drained(address).await
            }
        }
    }

    async fn finish(&self, address: &Address, how: End, why: String) -> Result<Option<u32>, Error> {
        match self.kernel.end(address, how, &why).await? {
            Ended::Next(incarnation) => Ok(Some(incarnation.0)),
            _ => Ok(None),
        }
    }

    fn gate(&self, address: &Address, gate: Gate) -> Result<Option<u32>, Error> {
        match self.kernel.bus().gate(address, gate) {
            Some(_) => Ok(None),
            None => Err(Error::new(
                Code::Precondition,
                "actor.mailbox",
                format!("{address} has no mailbox that could be held"),
            )
            .help("eclosion tree")),
        }
    }

    async fn drained(&self, address: &Address) -> Result<Option<u32>, Error> {
        let until = self.deadline.checked_sub(SPARE).unwrap_or(self.deadline);
        loop {
            let Some(mailbox) = self.kernel.bus().statistics(address) else { return Ok(None) };
            let left = mailbox.queued + mailbox.in_hand;
            if left == 0 {
                return Ok(None);
            }
            if Instant::now() >= until {
                let text = format!("{address} still has {left} messages; it goes on draining");
                return Err(Error::new(Code::Deadline, "actor.draining", text).help("eclosion tree"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn letter(self, request: dead::ActRequest) -> Answer {
        let target = format!("dead letter {}", request.id);
        let found = letter(&self.kernel, request.id);
        let letter = self.unless_refused(found, &target, &request.reason, request.dry_run).await?;
        let mut reply = dead::ActReply { letter: shown(&letter), done: false, act: None, refused: None };
        if !request.dry_run {
            let target = format!("dead letter {} of {}", letter.id, letter.address);
            let act = self.begin(&target, &request.reason, &reply.letter.operation).await?;
            let done = match self.operation {
                dead::Replay::NAME => self.replay(request.id).await,
                _ => self.kernel.bus().drop_dead_letter(request.id).map(|()| None),
            };
            self.end(act, done.as_ref().err()).await;
            (reply.refused, reply.act, reply.done) = (done?, Some(act), true);
        }
        Ok(Box::new(reply))
    }

    /// Until it was handled, as long as there is time; then it goes on by itself. Gives what it was refused with, if it was.
    ///
    /// # Errors
    /// What keeps it from being delivered, and `actor.died`: it is a dead letter again, then.
    async fn replay(&self, id: u64) -> Result<Option<Error>, Error> {
        let mut pending = self.kernel.bus().replay_dead_letter(id)?;
        let handled = tokio::spawn(async move {
            match pending.next().await {
                Some(Item::Reply(Err(error))) => Some(error),
                _ => None,
            }
        });
        let until = self.deadline.checked_sub(SPARE).unwrap_or(self.deadline).min(Instant::now() + REPLAY);
        match tokio::time::timeout_at(until.into(), handled).await {
            Ok(Ok(Some(error))) if error.reason == "actor.died" => Err(error
                .retry(eclosion_schemas::Retry::Never)
                .help("eclosion dead ls: it is a dead letter again")),
            Ok(Ok(refused)) => Ok(refused),
            // It is under way, or whoever waited is gone because the kernel stops.
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Lets a call go on that another address handles.
    async fn record(&self, act: audit::Act, call: Option<Call>, responder: Responder) {
        let Some(call) = call else {
            let text = "whoever was to record it died; it was not done";
            return responder.reply(Err(Error::died(kernel_ops::ADDRESS, text)));
        };
        let id = match self.begin_act(act).await {
            Ok(id) => id,
            Err(refusal) => return responder.reply(Err(refusal)),
        };
        let mut pending = self.kernel.bus().go_on(call);
        let outcome = tokio::select! {
            // As without a record: who hangs up wants it no longer. What had been decided by then stays.
            () = responder.cancelled().cancelled() => Err(hung_up()),
            outcome = reply(&mut pending) => outcome,
        };
        drop(pending);
        self.end(id, outcome.as_ref().err()).await;
        responder.reply(outcome);
    }

    /// # Errors
    /// What cannot be recorded is not done.
    async fn begin(&self, target: &str, reason: &str, blast: &str) -> Result<u64, Error> {
        self.begin_act(audit::Act {
            action: self.operation.into(),
            target: target.into(),
            reason: reason.into(),
            caller: self.caller.as_deref().map(str::to_owned),
            blast: blast.into(),
        })
        .await
    }

    async fn begin_act(&self, act: audit::Act) -> Result<u64, Error> {
        Ok(self.kernel.bus().ask::<audit::Begin>(act).await?.id)
    }

    /// What was done stays done, whether this can be recorded or not; the next life would call it unknown.
    async fn end(&self, id: u64, error: Option<&Error>) {
        let request = audit::EndRequest { id, error: error.cloned() };
        if let Err(why) = self.kernel.bus().ask::<audit::End>(request).await {
            tracing::warn!(id, %why, "the end of an operator's act is not recorded");
        }
    }
}

async fn reply(pending: &mut Pending) -> Answer {
    while let Some(item) = pending.next().await {
        if let Item::Reply(reply) = item {
            return reply;
        }
    }
    Err(hung_up())
}

fn hung_up() -> Error {
    Error::new(Code::Cancelled, "act.abandoned", "whoever asked for it hung up before it was answered")
}

fn row(kernel: &Kernel, address: &str) -> Result<ActorRow, Error> {
    let rows = kernel.rows();
    if let Some(row) = rows.iter().find(|row| row.address == address) {
        return Ok(row.clone());
    }
    let meant = nearest(address, rows.iter().map(|row| row.address.as_str()));
    let help = meant.map_or_else(|| "eclosion tree".into(), |meant| format!("did you mean {meant}?"));
    Err(Error::not_found("actor.unknown", format!("there is no actor {address}")).help(help))
}

fn refuse_what_cannot_be_undone(verb: Verb, address: &str) -> Result<(), Error> {
    let needed = [kernel_ops::ADDRESS, audit::ADDRESS].contains(&address);
    if needed && matches!(verb, Verb::Pause | Verb::Drain) {
        let text = format!("without {address} nobody could resume it");
        return Err(Error::new(Code::Precondition, "actor.needed", text)
            .help(format!("eclosion restart {address}, or: eclosion down")));
    }
    Ok(())
}

/// The letters, newest first.
pub(crate) fn letters(kernel: &Kernel, limit: u32) -> dead::ListReply {
    let letters = kernel.bus().dead_letters();
    let newest = letters.iter().rev().take(limit as usize).map(shown).collect();
    let forgotten = kernel.bus().dead_letters_forgotten();
    dead::ListReply { letters: newest, kept: letters.len() as u64, forgotten }
}

/// # Errors
/// `not_found`.
pub(crate) fn letter(kernel: &Kernel, id: u64) -> Result<DeadLetter, Error> {
    kernel.bus().dead_letters().into_iter().find(|letter| letter.id == id).ok_or_else(|| {
        Error::not_found("dead_letter.unknown", format!("there is no dead letter {id}"))
            .help("eclosion dead ls")
    })
}

pub(crate) fn shown(letter: &DeadLetter) -> dead::DeadLetterView {
    dead::DeadLetterView {
        id: letter.id,
        address: letter.address.to_string(),
        operation: letter.operation.to_owned(),
        why: letter.why.clone(),
        deliveries: letter.deliveries,
        caller: letter.caller.clone(),
        age_ms: u64::try_from(letter.age.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Actors that an operator holds back; nobody else will say so.
pub(crate) fn findings(rows: &[ActorRow]) -> impl Iterator<Item = String> {
    rows.iter().filter_map(|row| match row.state {
        ActorState::Paused | ActorState::Draining => Some(format!(
            "{} is {} since an operator said so, and {} messages wait. When that is over: eclosion resume {}",
            row.address,
            if row.state == ActorState::Paused { "paused" } else { "draining" },
            row.depth,
            row.address
        )),
        ActorState::Stuck => Some(format!(
            "{} has had the same message ({}) in hand for {} s. See: eclosion tree; to end it: eclosion restart {}, or eclosion kill {}",
            row.address,
            row.current.as_deref().unwrap_or("unknown"),
            row.in_hand_ms.unwrap_or_default() / 1000,
            row.address,
            row.address
        )),
        _ => None,
    })
}
