//! Routes: which mailbox an address leads to, and everything that is sent through them.
//!
//! A [`Bus`] is a cheap handle. When its last handle is dropped every mailbox is closed, so that nobody who still
//! waits hangs (P3).

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use eclosion_schemas::operation::{Operation, Spec, Table, Value};
use eclosion_schemas::{Code, Epoch, Error, Seq};

use crate::acts::ActCall;
use crate::address::{Address, Filter, Subject};
use crate::ask::{Ask, AskCell, CancelToken, Items, Origin, Pending, Watched};
use crate::clock::{Clock, Tick};
use crate::context::Context;
use crate::control::{Control, Probe};
use crate::dead_letter::{DeadLetter, DeadLetters};
use crate::locked;
use crate::mailbox::{Envelope, Gate, Mailbox, MailboxOptions, Message, Shelf};
use crate::publish::{Hub, OnFull, Publication, Subscription};
use crate::refused::{Refused, no_responders};
use crate::statistics::MailboxStatistics;
use crate::timings::Timings;
use crate::trace::{NewSpan, OpenSpan, SpanKind, Tracer};

/// The bus of one kernel.
///
/// ```
/// use eclosion_bus::{Address, Bus, MailboxOptions, Taken};
/// use eclosion_schemas::ops::kernel::{Empty, Ping};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let bus = Bus::new(eclosion_schemas::ops::table()?);
/// let mailbox = bus.open(Address::new("/kernel")?, MailboxOptions::default())?;
/// let answering = async {
///     if let Taken::Message(in_hand) = mailbox.take().await {
///         in_hand.finish().reply(Ok(Box::new(Empty {})));
///     }
/// };
/// let (reply, ()) = tokio::join!(bus.ask::<Ping>(Empty {}), answering);
/// assert_eq!(reply?, Empty {});
/// # Ok::<(), eclosion_schemas::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Bus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: RwLock<Arc<Table>>,
    clock: Clock,
    routes: Routes,
    /// Closed, while asks that were taken from them wait for an answer.
    closed: Mutex<Vec<Arc<Shelf>>>,
    dead: Arc<DeadLetters>,
    hub: Hub,
    tracer: OnceLock<Arc<dyn Tracer>>,
    /// Who gets calls that are acts of operators before they are handled.
    recorder: OnceLock<Address>,
}

type Routes = DashMap<Address, Arc<Shelf>, BuildHasherDefault<AddressHasher>>;

/// How every call to a service in another process is labelled.
pub const SERVED: &str = "service.call";

/// A call whose types only its [`Spec`] knows; what transports make of a frame.
#[derive(Debug)]
pub struct Call {
    pub spec: Arc<Spec>,
    /// Usually the operation's own.
    pub address: Address,
    /// Of the operation's request type.
    pub request: Value,
    pub context: Context,
    /// Items that may come before the caller has granted more ([`Pending::grant`]); `None`: as they are taken.
    pub credit: Option<u64>,
}

impl Bus {
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self::with_clock(table, Clock::system())
    }

    #[must_use]
    pub fn with_clock(table: Table, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            table: RwLock::new(Arc::new(table)),
            clock,
            routes: Routes::default(),
            closed: Mutex::default(),
            dead: Arc::default(),
            hub: Hub::default(),
            tracer: OnceLock::new(),
            recorder: OnceLock::new(),
        }))
    }

    /// The operations that are known now.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds an operation that is served from now on.
    ///
    /// # Errors
    /// `already_exists` when its name is taken.
    pub fn declare(&self, spec: Spec) -> Result<(), Error> {
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut table).declare(spec)
    }

    /// Changes several operations at once; nobody sees half of it.
    ///
    /// # Errors
    /// What `change` says; the table is as it was then.
    pub fn amend<T>(&self, change: impl FnOnce(&mut Table) -> Result<T, Error>) -> Result<T, Error> {
        let mut table = self.0.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Table::clone(&table);
        let outcome = change(&mut changed)?;
        *table = Arc::new(changed);
        Ok(outcome)
    }

    /// Asks that belong to a trace are recorded by this one from now on. The first stays.
    pub fn trace_with(&self, tracer: Arc<dyn Tracer>) {
        // A second one would tear traces apart.
        let _ = self.0.tracer.set(tracer);
    }

    #[must_use]
    pub fn tracer(&self) -> Option<&Arc<dyn Tracer>> {
        self.0.tracer.get()
    }

    #[inline]
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Makes an address reachable.
    ///
    /// # Errors
    /// `already_exists` while it is open.
    pub fn open(&self, address: Address, options: MailboxOptions) -> Result<Mailbox, Error> {
        match self.0.routes.entry(address) {
            Entry::Occupied(taken) => {
                let message = format!("{} is served already", taken.key());
                Err(Error::new(Code::AlreadyExists, "address.taken", message).help("eclosion tree"))
            }
            Entry::Vacant(free) => {
                let address = free.key().clone();
                let shelf = Shelf::new(address, options, self.0.clock.clone(), Arc::clone(&self.0.dead));
                Ok(Mailbox::new(Arc::clone(&free.insert(Arc::new(shelf)))))
            }
        }
    }

    /// Makes an address unreachable. What is queued becomes dead letters and its asks resolve `no_responders`; what is
    /// in hand may still be finished and answered. False if it was not open.
    #[must_use]
    pub fn close(&self, address: &Address) -> bool {
        // The route is gone before the mailbox is closed: nobody finds it closed and open at once.
        let removed = self.0.routes.remove(address);
        let Some((_, shelf)) = removed else { return false };
        shelf.close();
        if shelf.owes() {
            locked(&self.0.closed).push(shelf);
        } else {
            shelf.abandon();
        }
        true
    }

    /// Closes every address, and resolves what is in hand as well: nobody is left who would answer it, or who would sweep.
    /// The end of a kernel; asks from then on find nobody, at once.
    pub fn retire(&self) {
        let addresses: Vec<_> = self.0.routes.iter().map(|route| route.key().clone()).collect();
        for address in addresses {
            // It may have been closed meanwhile.
            let _ = self.close(&address);
        }
        let closed = std::mem::take(&mut *locked(&self.0.closed));
        closed.iter().for_each(|shelf| shelf.retire());
    }

    /// Asks; the builder is sent by `.await`, to the operation's own address unless told otherwise.
    pub fn ask<O: Operation>(&self, request: O::Request) -> Ask<'_, O> {
        Ask::new(self, request)
    }

    /// Tells, wanting no answer.
    ///
    /// # Errors
    /// The refusal hands the request back.
    pub fn tell<O: Operation>(&self, request: O::Request) -> Result<(), Refused<O::Request>> {
        self.send_tell::<O>(O::ADDRESS, Context::until(self.0.clock.never()), Tick::NEVER, request)
    }

    /// Tells somebody else than the operation's own address.
    ///
    /// # Errors
    /// The refusal hands the request back.
    pub fn tell_to<O: Operation>(
        &self,
        to: &Address,
        request: O::Request,
    ) -> Result<(), Refused<O::Request>> {
        self.send_tell::<O>(to.as_str(), Context::until(self.0.clock.never()), Tick::NEVER, request)
    }

    /// Tells with a context: a cause, a deadline after which it is not worth handling.
    ///
    /// # Errors
    /// The refusal hands the request back.
    pub fn tell_with<O: Operation>(
        &self,
        to: &str,
        context: Context,
        request: O::Request,
    ) -> Result<(), Refused<O::Request>> {
        let due = self.0.clock.tick_of(context.deadline);
        self.send_tell::<O>(to, context, due, request)
    }

    fn send_tell<O: Operation>(
        &self,
        to: &str,
        context: Context,
        due: Tick,
        request: O::Request,
    ) -> Result<(), Refused<O::Request>> {
        let now = self.0.clock.recent_tick();
        if due <= now {
            return Err(Refused::Expired(request));
        }
        let Some(route) = self.0.routes.get(to) else { return Err(Refused::Closed(request)) };
        let origin = Origin::Tell(Arc::clone(route.value()));
        let envelope = Envelope::new(O::NAME, context, now, due, origin, request);
        let pushed = route.push(envelope, |envelope| envelope);
        // The taker is woken without the map's lock.
        drop(route);
        let accepted = pushed.map_err(|refused| refused.map(|envelope| envelope.request))?;
        accepted.settle();
        Ok(())
    }

    /// Calls that are acts of operators come to this address as [`ActCall`] from now on. The first stays.
    pub fn record_acts_at(&self, address: Address) {
        // A second one would have what the first let go on.
        let _ = self.0.recorder.set(address);
    }

    /// Asks without knowing the types; items come before the reply if the operation streams. By way of the recorder, if it is
    /// an operator's act.
    pub fn call(&self, call: Call) -> Pending {
        match self.0.recorder.get() {
            Some(recorder) if call.spec.act.is_some() => self.record(recorder, call),
            _ => self.go_on(call),
        }
    }

    fn record(&self, recorder: &Address, call: Call) -> Pending {
        // Its span, and where its time goes, are of what is recorded and not of this.
        let context = Context { trace: None, timings: None, ..call.context.clone() };
        match ActCall::of(call) {
            Ok(act) => {
                let ticks = (self.0.clock.tick(), self.0.clock.tick_of(context.deadline));
                let operation = act.operation;
                self.send(recorder.as_str(), operation, context, ticks, act, Items::DISCARDED)
            }
            Err(call) => self.go_on(call),
        }
    }

    /// A call that is recorded, or need not be.
    pub fn go_on(&self, call: Call) -> Pending {
        let Call { spec, address, request, context, credit } = call;
        let (now, due) = (self.0.clock.tick(), self.0.clock.tick_of(context.deadline));
        let items = Items { wanted: spec.streams, credit };
        let mut context = context;
        let span = self.tracer().and_then(|tracer| {
            let name = format!("{} {address}", spec.name);
            begin(&**tracer, name, SpanKind::Server, &spec.name, address.as_str(), &mut context)
        });
        self.send_watched(address.as_str(), label(&spec), context, (now, due), request, (items, span))
    }

    /// # Errors
    /// `Full` when its control lane is full, `Closed` when nobody serves the address.
    pub fn control(&self, address: &Address, control: Control) -> Result<(), Refused<Control>> {
        match self.shelf(address.as_str()) {
            Some(shelf) => shelf.push_control(control),
            None => Err(Refused::Closed(control)),
        }
    }

    /// Closes or opens the gate of a mailbox; returns what it was. `None` when nobody serves the address.
    #[must_use]
    pub fn gate(&self, address: &Address, gate: Gate) -> Option<Gate> {
        self.shelf(address.as_str()).map(|shelf| shelf.set_gate(gate))
    }

    /// Asks whoever takes from the mailbox whether it is alive, past everything that is queued.
    ///
    /// # Errors
    /// `no_responders`, `exhausted`, `actor.died`, or `actor.stuck` after 5 s.
    pub async fn ping(&self, address: &Address) -> Result<(), Error> {
        let (probe, probing) = Probe::pair();
        self.control(address, Control::Ping(probe)).map_err(|refused| refused.to_error(address.as_str()))?;
        probing.answered(address.as_str()).await
    }

    /// Tells all who want to know; never waits. Returns how many that were.
    pub fn publish(&self, subject: &Subject, publication: Publication) -> usize {
        self.0.hub.publish(subject, publication)
    }

    /// Like [`Bus::publish`], but waits while a subscriber with `block` has no room. For workers' output, never for
    /// an actor.
    pub async fn publish_patiently(&self, subject: &Subject, publication: Publication) -> usize {
        self.0.hub.publish_patiently(subject, publication).await
    }

    /// Publishes a state: the last one is kept and shown to later subscribers. One that is older than what is kept is
    /// discarded.
    ///
    /// # Errors
    /// `exhausted` when too many states are kept; it was published, but later subscribers will not see it.
    pub fn retain(&self, subject: &Subject, publication: Publication) -> Result<usize, Error> {
        self.0.hub.retain(subject, publication)
    }

    /// Forgets retained states. Returns how many.
    pub fn forget(&self, filter: &Filter) -> usize {
        self.0.hub.forget(filter)
    }

    /// Subscribes without a gap or a repetition between the snapshot and the changes. `capacity` is that of changes
    /// not yet taken.
    #[must_use]
    pub fn subscribe(&self, filter: Filter, on_full: OnFull, capacity: usize) -> Subscription {
        self.0.hub.subscribe(filter, on_full, capacity, None)
    }

    /// The same for one who has heard up to a position: changes since then, some of them perhaps for the second time; or
    /// `reset` and a snapshot, if they are not kept or the position is of another epoch.
    #[must_use]
    pub fn subscribe_from(
        &self,
        filter: Filter,
        on_full: OnFull,
        capacity: usize,
        start: Option<(Epoch, Seq)>,
    ) -> Subscription {
        self.0.hub.subscribe(filter, on_full, capacity, start)
    }

    #[must_use]
    pub fn statistics(&self, address: &Address) -> Option<MailboxStatistics> {
        self.shelf(address.as_str()).map(|shelf| shelf.statistics())
    }

    /// In order.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<_> = self.0.routes.iter().map(|route| route.key().clone()).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.0.dead.list(self.0.clock.now())
    }

    /// The request of a dead letter, as it may be shown to people.
    #[must_use]
    pub fn dead_letter_request(&self, id: u64) -> Option<serde_json::Value> {
        let table = self.table();
        self.0.dead.with(id, |message| {
            let spec = table.get(message.operation)?;
            (spec.show_request)(message.request_any())
        })?
    }

    /// Dead letters that the bound of the list has pushed out.
    #[must_use]
    pub fn dead_letters_forgotten(&self) -> u64 {
        self.0.dead.forgotten()
    }

    /// Sends a dead letter again: who asked has had the refusal, so what comes of it is for who replays. It stays a dead
    /// letter if it is refused, and is withdrawn if what is given here is dropped while it waits.
    ///
    /// # Errors
    /// `not_found`, or the refusal.
    pub fn replay_dead_letter(&self, id: u64) -> Result<Pending, Error> {
        let mut letter = self.0.dead.take(id).ok_or_else(|| no_such_letter(id))?;
        let address = letter.address.clone();
        let Some(shelf) = self.shelf(address.as_str()) else {
            self.0.dead.put_back(letter);
            return Err(no_responders(address.as_str()));
        };
        let cell = AskCell::new(Arc::clone(&shelf), false, None, None);
        letter.message.revive(Arc::clone(&cell), self.0.clock.never(), self.0.clock.recent_tick());
        match shelf.push(letter, |letter| letter.message) {
            Ok(accepted) => Ok(Pending::waiting(cell, accepted.settle())),
            Err(refused) => {
                let error = refused.to_error(address.as_str());
                let mut letter = refused.into_inner();
                letter.message.asker = CancelToken::GONE;
                self.0.dead.put_back(letter);
                Err(error)
            }
        }
    }

    /// What the last incarnation of an address died of. A message that takes the next one along, too, is told with it.
    pub fn note_death(&self, address: &str, why: &str) {
        if let Some(shelf) = self.shelf(address) {
            shelf.note_death(why);
        }
    }

    /// Drops a dead letter for good.
    ///
    /// # Errors
    /// `not_found`.
    pub fn drop_dead_letter(&self, id: u64) -> Result<(), Error> {
        self.0.dead.take(id).map(drop).ok_or_else(|| no_such_letter(id))
    }

    /// Resolves every ask whose deadline has passed, queued or in work. The kernel calls it every 50 ms.
    pub fn sweep(&self, now: Instant) {
        let now = self.0.clock.note(now);
        // Not under the map's lock: resolving an ask wakes its asker.
        let mut shelves: Vec<_> = self.0.routes.iter().map(|route| Arc::clone(route.value())).collect();
        shelves.extend(locked(&self.0.closed).iter().cloned());
        shelves.iter().for_each(|shelf| shelf.sweep(now));
        locked(&self.0.closed).retain(|shelf| {
            let owes = shelf.owes();
            if !owes {
                shelf.abandon();
            }
            owes
        });
    }

    #[inline]
    fn shelf(&self, address: &str) -> Option<Arc<Shelf>> {
        self.0.routes.get(address).map(|route| Arc::clone(route.value()))
    }

    pub(crate) fn send<R: Send + 'static>(
        &self,
        to: &str,
        operation: &'static str,
        mut context: Context,
        ticks: (Tick, Tick),
        request: R,
        items: Items,
    ) -> Pending {
        let mut span = None;
        if context.trace.is_some()
            && let Some(tracer) = self.tracer()
        {
            let name = format!("{operation} {to}");
            span = begin(&**tracer, name, SpanKind::Consumer, operation, to, &mut context);
        }
        self.send_watched(to, operation, context, ticks, request, (items, span))
    }

    #[inline]
    fn send_watched<R: Send + 'static>(
        &self,
        to: &str,
        operation: &'static str,
        context: Context,
        (now, due): (Tick, Tick),
        request: R,
        (items, span): (Items, Option<Box<dyn OpenSpan>>),
    ) -> Pending {
        if due <= now {
            return Pending::refused(Refused::Expired(()).to_error(to));
        }
        let Some(shelf) = self.shelf(to) else { return Pending::refused(no_responders(to)) };
        let watched = (context.timings.is_some() || span.is_some()).then(|| {
            let timings = context.timings.clone().unwrap_or_else(Timings::begin);
            Box::new(Watched { timings, span: Mutex::new(span) })
        });
        let cell = AskCell::new(shelf, items.wanted, items.credit, watched);
        let origin = Origin::Ask(Arc::clone(&cell));
        let envelope = Envelope::new(operation, context, now, due, origin, request);
        match cell.shelf().push(envelope, |envelope| envelope as Box<Message>) {
            Ok(accepted) => Pending::waiting(cell, accepted.settle()),
            Err(refused) => Pending::refused(refused.to_error(to)),
        }
    }
}

/// Begins the span of a message; what comes of it is below that.
fn begin(
    tracer: &dyn Tracer,
    name: String,
    kind: SpanKind,
    operation: &str,
    address: &str,
    context: &mut Context,
) -> Option<Box<dyn OpenSpan>> {
    let attributes = [
        ("messaging.system", "eclosion"),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", operation),
        ("messaging.destination.name", address),
        ("eclosion.caller", context.caller.as_deref().unwrap_or_default()),
    ];
    let attributes = if context.caller.is_some() { &attributes[..] } else { &attributes[..4] };
    let span = tracer.begin(NewSpan { name, parent: context.trace, kind, began: None, attributes })?;
    context.trace = Some(span.context());
    Some(span)
}

/// What a message is called on its way: a service's own name for it is in its `Opaque` request, as a name that came
/// from outside does not live as long as the program.
pub(crate) fn label(spec: &Spec) -> &'static str {
    match spec.name {
        Cow::Borrowed(name) => name,
        Cow::Owned(_) => SERVED,
    }
}

fn no_such_letter(id: u64) -> Error {
    Error::not_found("dead_letter.unknown", format!("there is no dead letter {id}")).help("eclosion dead")
}

impl Drop for Shared {
    fn drop(&mut self) {
        for route in &self.routes {
            route.value().close();
            route.value().abandon();
        }
        locked(&self.closed).iter().for_each(|shelf| shelf.abandon());
    }
}

/// Eight bytes a step, each folded in by a multiplication. Addresses are few, short, and declared by the program or by
/// admitted services, so speed is worth more here than a keyed hash.
#[derive(Default)]
struct AddressHasher(u64);

impl AddressHasher {
    #[inline]
    fn fold(&mut self, word: u64) {
        // The digits of the golden ratio: odd, and without a pattern.
        let wide = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }
}

impl fmt::Debug for AddressHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressHasher")
    }
}

impl Hasher for AddressHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= bytes.len() as u64;
        for word in bytes.as_chunks::<8>().0 {
            self.fold(u64::from_le_bytes(*word));
        }
        // The last word overlaps the one before, or two halves overlap, instead of a loop over bytes.
        if let Some(word) = bytes.last_chunk::<8>() {
            self.fold(u64::from_le_bytes(*word));
        } else if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
            self.fold(u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last)));
        } else {
            self.fold(bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
    }

    /// The end mark of a string; its length is in the hash already.
    #[inline]
    fn write_u8(&mut self, _: u8) {}

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
