//! Addresses that a client in another process serves: proxy actors in the tree, and their operations in the table.
//!
//! A proxy takes from the address's mailbox and puts each call into the line of the session that serves it
//! ([`eclosion_ipc::session::serve`]), as many at a time as the address was declared with; the others wait in the mailbox.
//! It keeps nothing. When the session ends the address is closed: what was sent is answered `service.gone`, what waited
//! `no_responders`, both at once. The operations stay in the table, so that callers hear that nobody serves them and not
//! that there are none; who comes back takes address and operations again.
//!
//! Bounds: addresses and operations of one connection ([`ADDRESSES_MAX`], [`OPERATIONS_MAX`]), operations in sum
//! ([`TABLE_MAX`]; those of who has left give way first), calls open in sum as many as a connection may have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use eclosion_bus::{Address, Bus, InHand, MailboxOptions};
use eclosion_ipc::{Declared, Declaring, ServiceCall, Services, gone};
use eclosion_kernel::kernel::HOLDERS;
use eclosion_kernel::{Handler, Kernel};
use eclosion_schemas::frame::Limits;
use eclosion_schemas::operation::{Opaque, Spec, Table};
use eclosion_schemas::ops::service::{
    ADDRESSES_MAX, DeclareReply, DeclareRequest, OPERATIONS_MAX, ServedAddress,
};
use eclosion_schemas::{Code, Error, Retry, Role};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::extension::{check_address, check_operation};

/// Operations of services in sum.
const TABLE_MAX: usize = 1024;
/// How long an address may take to become free that its last owner has just left.
const FREE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServiceTable(Arc<Shared>);

struct Shared {
    kernel: Kernel,
    /// Of the table that it was computed from.
    hash: Mutex<(Weak<Table>, String)>,
    holders: Mutex<Holders>,
}

/// Who serves which address now.
type Holders = BTreeMap<Address, Arc<str>>;

impl ServiceTable {
    pub(crate) fn new(kernel: &Kernel) -> Self {
        let (kernel, hash) = (kernel.clone(), Mutex::new((Weak::new(), String::new())));
        Self(Arc::new(Shared { kernel, hash, holders: Mutex::default() }))
    }

    async fn give(
        self,
        request: DeclareRequest,
        owner: Arc<str>,
        line: mpsc::Sender<ServiceCall>,
    ) -> Result<Declared, Error> {
        check(&request)?;
        let specs = specs(&request, &owner)?;
        let bus = self.0.kernel.bus().clone();
        bus.amend(|table| fits(table, &specs, &bus))?;
        let mut registration = Registration { shared: Arc::clone(&self.0), addresses: Vec::new() };
        for served in &request.addresses {
            let address = Address::new(&served.address)?;
            if let Some(holder) = self.0.holder(&address) {
                return Err(taken(&address, &holder));
            }
            self.serve(address.clone(), served, &owner, &line).await.map_err(|why| match why.code {
                // By somebody who came a moment earlier, or who is no service.
                Code::AlreadyExists => {
                    let holder = self.0.holder(&address);
                    taken(&address, holder.as_deref().unwrap_or("the kernel's own program"))
                }
                _ => why,
            })?;
            self.0.holders().insert(address.clone(), Arc::clone(&owner));
            registration.addresses.push(address);
        }
        bus.amend(|table| declare(table, &specs))?;
        let reply = DeclareReply { describe_hash: self.describe_hash() };
        Ok(Declared { reply, registration: Box::new(registration) })
    }

    async fn serve(
        &self,
        address: Address,
        served: &ServedAddress,
        owner: &Arc<str>,
        line: &mpsc::Sender<ServiceCall>,
    ) -> Result<(), Error> {
        let capacity_data = served.waiting_max as usize;
        let options = MailboxOptions { capacity_data, ..MailboxOptions::default() };
        let proxy = Proxy {
            owner: Arc::clone(owner),
            line: line.clone(),
            places: Arc::new(Semaphore::new(served.concurrency as usize)),
        };
        let until = Instant::now() + FREE;
        loop {
            let proxy = proxy.clone();
            let serving = self.0.kernel.serve(HOLDERS, address.clone(), options, move || proxy.clone());
            match serving.await {
                // The actor of who had it before is on its way out.
                Err(refusal) if refusal.reason == "supervision.child" && Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                served => return served,
            }
        }
    }
}

fn taken(address: &Address, holder: &str) -> Error {
    let text = format!("{address} is served already, by {holder}");
    Error::new(Code::AlreadyExists, "address.taken", text).help("eclosion tree")
}

impl Shared {
    fn holder(&self, address: &Address) -> Option<Arc<str>> {
        self.holders().get(address).cloned()
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Services for ServiceTable {
    fn declare(
        &self,
        request: DeclareRequest,
        owner: Arc<str>,
        line: mpsc::Sender<ServiceCall>,
    ) -> Declaring {
        Box::pin(self.clone().give(request, owner, line))
    }

    fn describe_hash(&self) -> String {
        let table = self.0.kernel.bus().table();
        let mut known = self.0.hash.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(known.0.as_ptr(), Arc::as_ptr(&table)) {
            *known = (Arc::downgrade(&table), describe_hash(&table));
        }
        known.1.clone()
    }
}

/// The hash of everything that `kernel.describe` answers.
pub(crate) fn describe_hash(table: &Table) -> String {
    let operations: Vec<_> = table.iter().map(|spec| spec.describe()).collect();
    let described = serde_json::to_vec(&operations).unwrap_or_default();
    blake3::hash(&described).to_hex().to_string()
}

/// The addresses of one session; they are closed with it.
struct Registration {
    shared: Arc<Shared>,
    addresses: Vec<Address>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        for address in &self.addresses {
            // First, so that who takes it next is not forgotten here.
            self.shared.holders().remove(address);
            // It may have been closed by hand.
            let _ = self.shared.kernel.bus().close(address);
        }
    }
}

/// The actor at a served address.
#[derive(Clone)]
struct Proxy {
    owner: Arc<str>,
    line: mpsc::Sender<ServiceCall>,
    places: Arc<Semaphore>,
}

impl Handler for Proxy {
    async fn handle(&mut self, message: InHand) {
        let Some(request) = message.request_any().downcast_ref::<Opaque>().cloned() else {
            let text = format!("{} takes calls of its own operations alone", self.owner);
            return message.finish().reply(Err(Error::new(Code::Unimplemented, "operation.address", text)));
        };
        // Until then it is in hand here, and its caller may leave.
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&self.places).acquire_owned() => permit,
            () = message.cancelled().cancelled() => return drop(message.finish()),
            () = self.line.closed() => return message.finish().reply(Err(gone(&self.owner))),
        };
        let context = message.context.clone();
        let responder = message.finish();
        let Ok(permit) = permit else { return responder.reply(Err(gone(&self.owner))) };
        let call = ServiceCall { request, context, responder, permit };
        if let Err(refused) = self.line.send(call).await {
            refused.0.gone(&self.owner);
        }
    }
}

fn check(request: &DeclareRequest) -> Result<(), Error> {
    let operations: usize = request.addresses.iter().map(|served| served.operations.len()).sum();
    if request.addresses.is_empty() || request.addresses.len() > ADDRESSES_MAX || operations > OPERATIONS_MAX
    {
        let text =
            format!("a service declares 1 to {ADDRESSES_MAX} addresses and {OPERATIONS_MAX} operations");
        return Err(Error::invalid("service.size", text));
    }
    let open: u64 = request.addresses.iter().map(|served| u64::from(served.concurrency)).sum();
    let inflight = Limits::DEFAULT.inflight;
    if open > u64::from(inflight) || request.addresses.iter().any(|served| served.concurrency == 0) {
        let text = format!("the concurrency of an address is 1 or more, and {inflight} at most in sum");
        return Err(Error::invalid("service.concurrency", text));
    }
    const WAITING_MAX: u32 = 4096;
    if request.addresses.iter().any(|served| !(1..=WAITING_MAX).contains(&served.waiting_max)) {
        let text = format!("waiting_max is 1 to {WAITING_MAX}");
        return Err(Error::invalid("service.waiting", text));
    }
    request.addresses.iter().try_for_each(|served| check_address(&served.address))
}

fn specs(request: &DeclareRequest, owner: &Arc<str>) -> Result<Vec<Spec>, Error> {
    let mut specs = Vec::new();
    for served in &request.addresses {
        for operation in &served.operations {
            if !matches!(operation.role, Role::View | Role::Operate | Role::Admin) {
                let text = format!("{} asks for a role that no caller has", operation.name);
                return Err(Error::invalid("service.role", text).help("view, operate or admin"));
            }
            let spec = Spec::served(operation, &served.address, owner);
            check_operation(&spec)?;
            specs.push(spec);
        }
    }
    Ok(specs)
}

/// Whether the operations may be declared; those of who has left give way.
fn fits(table: &mut Table, specs: &[Spec], bus: &Bus) -> Result<(), Error> {
    let is_served =
        |spec: &Spec| Address::new(&*spec.address).is_ok_and(|address| bus.statistics(&address).is_some());
    for spec in specs {
        if let Some(known) = table.get(&spec.name)
            && (known.owner.is_none() || is_served(known))
        {
            let owner = known.owner.as_deref().unwrap_or("the kernel's own program");
            let text = format!("operation {} is served already, by {owner} at {}", spec.name, known.address);
            let error = Error::new(Code::AlreadyExists, "operation.name", text);
            return Err(error.help(format!("eclosion describe {}", spec.name)));
        }
    }
    let of_services = |table: &Table| table.iter().filter(|spec| spec.owner.is_some()).count();
    if of_services(table) + specs.len() > TABLE_MAX {
        table.retain(|spec| spec.owner.is_none() || is_served(spec));
    }
    if of_services(table) + specs.len() > TABLE_MAX {
        let text = format!("services have declared {TABLE_MAX} operations, the most that there may be");
        return Err(
            Error::new(Code::Exhausted, "service.table", text).retry(Retry::After { after_ms: 1_000 })
        );
    }
    Ok(())
}

fn declare(table: &mut Table, specs: &[Spec]) -> Result<(), Error> {
    table.retain(|known| known.owner.is_none() || !specs.iter().any(|spec| spec.name == known.name));
    specs.iter().try_for_each(|spec| table.declare(spec.clone()))
}
