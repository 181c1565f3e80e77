//! `artifact.search`: conditions on what is known of artifacts, newest first.
//!
//! A run, a flow with a task, and a tag lead to their artifacts at once. Anything else is found by going back through
//! the artifacts page by page, at most [`LOOKED_MAX`] for one request; the reply says how many were compared and where
//! to go on, so that a search through a million is many small requests and holds nobody up.

use eclosion_schemas::ops::artifact::{List, ListRequest, SearchReply, SearchRequest, Tags, TagsRequest};
use eclosion_schemas::view::ArtifactView;

use super::index::{Page, PageRequest, Resolve, ResolveRequest, Views, ViewsRequest};
use super::{Code, Error, Reading, Responder};
use crate::lineage::base;
use crate::rows::{ARTIFACT_ROWS_MAX, PAGE_NAMES_MAX};

/// Artifacts compared for one request.
const LOOKED_MAX: u64 = 20_000;
/// Artifacts in one reply.
const FOUND_MAX: usize = 1_000;
/// Runs of a flow that are asked for one by one.
const RUNS_MAX: usize = 64;
const WORDS_MAX: usize = 16;

impl Reading {
    pub(super) async fn search(
        &self,
        request: SearchRequest,
        responder: &Responder,
    ) -> Result<SearchReply, Error> {
        let wanted = Wanted::new(request)?;
        match self.led_to(&wanted.request).await? {
            Some(names) => self.among(&wanted, &names, responder).await,
            None => self.back_through_all(&wanted, responder).await,
        }
    }

    /// The names that a condition leads to, in no order; none: it leads to no few.
    async fn led_to(&self, request: &SearchRequest) -> Result<Option<Vec<String>>, Error> {
        let SearchRequest { run, flow, task, tag, .. } = request;
        if let Some(tag) = tag {
            let prefix = flow.as_ref().map(|flow| format!("{flow}/")).unwrap_or_default();
            let tags = TagsRequest { prefix, history: false, limit: ARTIFACT_ROWS_MAX };
            let tags = self.bus.ask::<Tags>(tags).await?.tags.into_iter();
            return Ok(Some(tags.filter(|one| one.tag == *tag).filter_map(|one| one.artifact).collect()));
        }
        if let Some(run) = run {
            let all = ListRequest { run: Some(run.clone()), prefix: String::new(), limit: ARTIFACT_ROWS_MAX };
            let listed = self.bus.ask::<List>(all).await?.artifacts;
            return Ok(Some(listed.into_iter().map(|artifact| artifact.name).collect()));
        }
        match (flow, task) {
            (Some(flow), Some(task)) => self.of_task(flow, task).await,
            _ => Ok(None),
        }
    }

    /// Also the instances of a fan-out; none: there are too many runs to be asked for one by one.
    async fn of_task(&self, flow: &str, task: &str) -> Result<Option<Vec<String>>, Error> {
        let named = ResolveRequest { name: format!("{flow}/{task}") };
        let runs = self.bus.ask::<Resolve>(named).await?.names;
        if runs.len() > RUNS_MAX {
            return Ok(None);
        }
        let mut names = Vec::new();
        for prefix in runs {
            let of_run = ListRequest { run: None, prefix, limit: ARTIFACT_ROWS_MAX };
            let listed = self.bus.ask::<List>(of_run).await?.artifacts;
            names.extend(listed.into_iter().map(|artifact| artifact.name));
        }
        Ok(Some(names))
    }

    async fn among(
        &self,
        wanted: &Wanted,
        names: &[String],
        responder: &Responder,
    ) -> Result<SearchReply, Error> {
        let mut found = Vec::new();
        for names in names.chunks(PAGE_NAMES_MAX) {
            found.extend(self.matching(wanted, names.to_vec(), responder).await?);
        }
        found.sort_by_key(|artifact| std::cmp::Reverse(artifact.seq));
        let is_cut = found.len() > wanted.limit;
        found.truncate(wanted.limit);
        let more = found.last().filter(|_| is_cut).map(|last| last.seq);
        Ok(SearchReply { artifacts: found, looked: names.len() as u64, more })
    }

    async fn back_through_all(&self, wanted: &Wanted, responder: &Responder) -> Result<SearchReply, Error> {
        let mut reply = SearchReply { artifacts: Vec::new(), looked: 0, more: None };
        let mut before = wanted.request.before;
        loop {
            let page = self.bus.ask::<Page>(PageRequest { before }).await?;
            reply.looked += page.names.len() as u64;
            if !page.names.is_empty() {
                reply.artifacts.extend(self.matching(wanted, page.names, responder).await?);
            }
            if reply.artifacts.len() > wanted.limit {
                reply.artifacts.truncate(wanted.limit);
                reply.more = reply.artifacts.last().map(|last| last.seq);
                return Ok(reply);
            }
            if page.before.is_none() || reply.artifacts.len() == wanted.limit || reply.looked >= LOOKED_MAX {
                reply.more = page.before;
                return Ok(reply);
            }
            before = page.before;
        }
    }

    async fn matching(
        &self,
        wanted: &Wanted,
        names: Vec<String>,
        responder: &Responder,
    ) -> Result<Vec<ArtifactView>, Error> {
        if responder.cancelled().is_cancelled() {
            return Err(Error::new(Code::Cancelled, "ask.abandoned", "nobody waits for the search anymore"));
        }
        let views = self.bus.ask::<Views>(ViewsRequest { names }).await?.views.into_iter();
        Ok(views.filter(|(view, flow)| wanted.is_met_by(view, flow)).map(|(view, _)| view).collect())
    }
}

/// A request that was checked, with its words in lower case.
struct Wanted {
    request: SearchRequest,
    words: Vec<String>,
    limit: usize,
}

impl Wanted {
    fn new(request: SearchRequest) -> Result<Self, Error> {
        let words: Vec<String> = request.text.split_whitespace().map(str::to_lowercase).collect();
        if words.len() > WORDS_MAX {
            let text = format!("{} words are more than {WORDS_MAX}", words.len());
            return Err(Error::invalid("artifact.search", text));
        }
        let limit = (request.limit as usize).clamp(1, FOUND_MAX);
        Ok(Self { request, words, limit })
    }

    fn is_met_by(&self, artifact: &ArtifactView, flow: &str) -> bool {
        let SearchRequest { run, flow: in_flow, task, codec, bytes_min, bytes_max, before, .. } =
            &self.request;
        before.is_none_or(|before| artifact.seq < before)
            && run.as_ref().is_none_or(|run| *run == artifact.run)
            && in_flow.as_ref().is_none_or(|wanted| wanted == flow)
            && task.as_ref().is_none_or(|task| is_of_task(artifact.task.as_str(), task))
            && codec.as_ref().is_none_or(|codec| *codec == artifact.codec)
            && bytes_min.is_none_or(|min| artifact.bytes >= min)
            && bytes_max.is_none_or(|max| artifact.bytes <= max)
            && self.has_words(artifact, flow)
    }

    fn has_words(&self, artifact: &ArtifactView, flow: &str) -> bool {
        if self.words.is_empty() {
            return true;
        }
        let digest = artifact.digest.as_ref().map(eclosion_schemas::Digest::as_str).unwrap_or_default();
        let file = artifact.file.as_deref().unwrap_or_default();
        let text = format!("{} {flow} {file} {} {digest}", artifact.name, artifact.codec).to_lowercase();
        self.words.iter().all(|word| text.contains(word.as_str()))
    }
}

/// `train` means every instance, `train[3]` that one.
fn is_of_task(found: &str, wanted: &str) -> bool {
    found == wanted || base(found) == wanted
}
