//! Looks for earlier results, performed: the tracker is asked for entries, then the artifact store for each output, and
//! the answers go back as a command of the tracker's own.

use eclosion_dag_tracker::look;
use eclosion_schemas::ops::artifact::{GetReply, GetRequest};
use eclosion_schemas::ops::cache::{FindReply, FindRequest};

use super::*;
use crate::files;

impl World {
    pub(super) fn look_for(&mut self, id: EffectId, effect: eclosion_dag_tracker::Effect) {
        let eclosion_dag_tracker::Effect::Look(owed) = &effect else { return };
        let lookups = vec![owed.lookup.clone()];
        self.remember_ask(Who::Dag, id, Effects::Dag(vec![(id, effect)]));
        self.checks.counts.looks += 1;
        let delay_us = self.hop_us();
        let command = eclosion_dag_tracker::Command::Find(FindRequest { lookups });
        self.mail::<DagTracker>(delay_us, command, Some(id), ReplyTo::Found(id), None);
    }

    pub(super) fn found(&mut self, id: EffectId, answer: Answer) {
        let owed = self.kernel.as_ref().and_then(|kernel| kernel.asks.get(&(Who::Dag, id)));
        let Some(Effects::Dag(effects)) = owed else { return };
        let lookup = effects.iter().find_map(|(_, effect)| match effect {
            eclosion_dag_tracker::Effect::Look(look) => Some(look.lookup.clone()),
            _ => None,
        });
        let Some(lookup) = lookup else { return };
        let reply = match answer {
            Err(refusal) if !is_final(refusal.code) => return self.ask_answered(Who::Dag, id, &Err(refusal)),
            Ok(reply) => Ok(*reply.downcast::<FindReply>().unwrap()),
            Err(refusal) => Err(refusal),
        };
        let looks = look::looking(&[(id, lookup)], reply);
        let outputs = looks.iter().flat_map(look::named).cloned().collect();
        self.recall(id, Recalling { looks, outputs, payloads: Vec::new() });
    }

    fn recall(&mut self, id: EffectId, recalling: Recalling) {
        let Some(output) = recalling.outputs.front() else {
            if let Some(kernel) = &mut self.kernel {
                kernel.asks.remove(&(Who::Dag, id));
            }
            return self.own::<DagTracker>(look::answers(recalling.looks, recalling.payloads));
        };
        let command = eclosion_artifact_store::Command::Get(GetRequest { name: output.to_string() });
        let delay_us = self.hop_us();
        let reply_to = ReplyTo::Recalled(id, Box::new(recalling));
        self.mail::<Artifacts>(delay_us, command, Some(id), reply_to, None);
    }

    pub(super) fn recalled(&mut self, id: EffectId, mut recalling: Recalling, answer: Answer) {
        let payload = match answer {
            Err(refusal) if !is_final(refusal.code) => return self.ask_answered(Who::Dag, id, &Err(refusal)),
            Err(_) => None,
            Ok(reply) => Some(reply.downcast::<GetReply>().unwrap().payload),
        };
        // An output is no longer there when one of its files is not.
        let is_whole = |payload: &Payload| files::artifacts(payload).all(|(item, _)| self.files.holds(&item));
        recalling.payloads.push(payload.filter(is_whole));
        recalling.outputs.pop_front();
        self.recall(id, recalling);
    }
}
