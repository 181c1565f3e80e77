//! `service`: Python objects that the kernel holds, and begins again when they die.

use eclosion_client::Client;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::kernel::Delivery;
use eclosion_schemas::ops::service;
use eclosion_schemas::ops::service::{
    List, ListRequest, Restart, ServiceReply, ServiceSpec, ServiceState, ServiceView, StartRequest, Stop,
    StopRequest,
};
use eclosion_schemas::{Code, Error, ServiceName};

use crate::arguments::service::{Service, Start};
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

pub(super) async fn perform(globals: &Globals, act: Service) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    match act {
        Service::Start(given) => {
            let request = StartRequest { name: given.name.clone(), spec: spec(given)? };
            let name = request.name.clone();
            let begun = until_ready(&client, &name, async |client| {
                client.call::<service::Start>(request).await.map(|ServiceReply { service }| service)
            });
            shown(globals, &begun.await?, "served")
        }
        Service::Restart { name, reason } => {
            let request = StopRequest { name: name.clone(), reason };
            let begun = until_ready(&client, &name, async |client| {
                client.call::<Restart>(request).await.map(|ServiceReply { service }| service)
            });
            shown(globals, &begun.await?, "served")
        }
        Service::Stop { name, reason } => {
            let service = client.call::<Stop>(StopRequest { name, reason }).await?.service;
            shown(globals, &service, "stopped")
        }
        Service::Ls => list(globals, &client).await,
    }
}

fn spec(given: Start) -> Result<ServiceSpec, Error> {
    let code = given.code.unwrap_or_else(|| ".".into());
    let code = std::fs::canonicalize(&code).map_err(|why| {
        Error::not_found("service.code", format!("{}: {why}", code.display()))
            .help("name its directory: --code")
    })?;
    Ok(ServiceSpec {
        object: given.object,
        code: code.to_string_lossy().into_owned(),
        environment: EnvironmentSpec {
            python: given.python,
            requirements: given.requirements,
            ..EnvironmentSpec::default()
        },
        restart: given.restart.into(),
        restarts_max: given.restarts_max,
        window_ms: given.window.saturating_mul(1_000),
    })
}

/// Asks for a life of it, and waits until that is served or over. Subscribed before it is asked, so that nothing of it is
/// missed.
async fn until_ready(
    client: &Client,
    name: &ServiceName,
    begin: impl AsyncFnOnce(&Client) -> Result<ServiceView, Error>,
) -> Result<ServiceView, Error> {
    let mut states = client.subscribe(format!("service/{name}/state")).await?;
    let mut service = begin(client).await?;
    let before = service.life;
    // The same start again finds it as it is.
    let mut is_news = service.state == ServiceState::Ready;
    loop {
        match service.state {
            ServiceState::Ready if is_news => return Ok(service),
            ServiceState::Failed | ServiceState::Stopped if is_news => return Err(over(service)),
            ServiceState::Backoff if is_news => {
                talk(&format!("{name} has ended, and is begun again: {}", why(&service)));
            }
            _ => {}
        }
        service = match states.next().await {
            Some(Ok(Delivery::Change { value, .. })) => serde_json::from_value(value)
                .map_err(|why| Error::internal("service.state", why.to_string()))?,
            Some(Ok(_)) => continue,
            Some(Err(why)) => return Err(why),
            None => return Err(Error::new(Code::Unavailable, "kernel.stopping", "the kernel stops")),
        };
        is_news = service.life > before || service.state == ServiceState::Ready;
    }
}

fn over(service: ServiceView) -> Error {
    let text = format!("the service {} has ended: {}", service.name, why(&service));
    let error = Error::new(Code::Unavailable, "service.over", text);
    let causes = service.last_error.into_iter().flat_map(|error| error.causes);
    causes.fold(error, Error::cause).help("eclosion service ls")
}

fn why(service: &ServiceView) -> &str {
    service.last_error.as_ref().map_or("by itself", |error| &error.message)
}

fn shown(globals: &Globals, service: &ServiceView, done: &str) -> Result<u8, Error> {
    if globals.json {
        document("service", service)?;
    } else {
        let at = service.address.as_deref().map(|address| format!(" at {address}")).unwrap_or_default();
        talk(&format!("{} is {done}{at}", service.name));
    }
    Ok(exit::OK)
}

async fn list(globals: &Globals, client: &Client) -> Result<u8, Error> {
    let reply = client.call::<List>(ListRequest { name: None }).await?;
    if globals.json {
        document("services", &reply)?;
        return Ok(exit::OK);
    }
    if reply.services.is_empty() {
        talk("no services; start one: eclosion service start NAME MODULE:CLASS");
        return Ok(exit::OK);
    }
    let header = ["service", "state", "since", "address", "pid", "life", "restarts", "object", "last error"];
    print(&table(&header, reply.services.iter().map(row)))?;
    Ok(exit::OK)
}

fn row(service: &ServiceView) -> Vec<String> {
    vec![
        service.name.to_string(),
        state(service.state).into(),
        render::duration(render::now().since_ms(service.since)),
        service.address.clone().unwrap_or_default(),
        service.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        service.life.to_string(),
        format!("{}/{}", service.restarts, service.spec.restarts_max),
        service.spec.object.clone(),
        service.last_error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
    ]
}

fn state(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Starting => "starting",
        ServiceState::Ready => "ready",
        ServiceState::Backoff => "backoff",
        ServiceState::Failed => "failed",
        ServiceState::Stopped => "stopped",
    }
}
