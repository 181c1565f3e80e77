//! What the kernel says of itself to whoever attaches.

use eclosion_schemas::frame::{API, API_COMPATIBLE, Envelope, Frame, FrameType, Limits, StreamId};
use eclosion_schemas::{Epoch, Role};

/// What the kernel says of itself in WELCOME, and enforces.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// Name and version of the program: `eclosion/0.1.0`.
    pub server: String,
    pub instance: String,
    pub epoch: Epoch,
    /// The hash of the table of operations.
    pub describe_hash: String,
    pub features: Vec<String>,
    pub limits: Limits,
}

impl Welcome {
    pub(crate) fn frame(&self, role: Role, resume: Vec<StreamId>) -> Frame {
        Frame::new(FrameType::Welcome, StreamId::CONNECTION).with_envelope(Envelope {
            server: Some(self.server.clone()),
            instance: Some(self.instance.clone()),
            epoch: Some(self.epoch),
            api: Some(API),
            api_compatible: Some(API_COMPATIBLE),
            features: (!self.features.is_empty()).then(|| self.features.clone()),
            role: Some(role),
            limits: Some(self.limits),
            describe_hash: Some(self.describe_hash.clone()),
            resume: (!resume.is_empty()).then_some(resume),
            ..Envelope::default()
        })
    }
}
