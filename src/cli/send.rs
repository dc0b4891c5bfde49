//! `twinspan send`: one frame.

use std::sync::Arc;

use clap::Args;

use super::body::Said;
use super::{Failure, Gateway, output};
use crate::client::Error;
use crate::frame::{Body, Frame, pb};

/// `twinspan send`.
#[derive(Debug, Args)]
pub struct Send {
    /// The session
    session: String,
    /// The application's word for what this is
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    #[command(flatten)]
    said: Said,
    /// Make it a request to one worker of the role
    #[arg(long, value_name = "ROLE", conflicts_with = "to_member")]
    to_role: Option<String>,
    /// Make it private: to this member
    #[arg(long, value_name = "MEMBER")]
    to_member: Option<String>,
    /// The frame's id: the same one sent again is not logged again
    #[arg(long)]
    id: Option<String>,
    /// Whom it is from
    #[arg(long = "as", value_name = "MEMBER", default_value = "cli")]
    member: String,
    #[command(flatten)]
    gateway: Gateway,
}

impl Send {
    pub async fn run(self) -> Result<(), Failure> {
        let to = (self.to_role.is_some() || self.to_member.is_some()).then(|| {
            let (role, member_id) = (self.to_role.unwrap_or_default(), self.to_member.unwrap_or_default());
            Arc::new(pb::Address {
                role,
                member_id,
                ..pb::Address::default()
            })
        });
        let frame = Frame {
            id: self.id.unwrap_or_default().into(),
            session_id: self.session.into(),
            r#type: self.kind.unwrap_or_default().into(),
            to,
            body: self.said.body()?.unwrap_or(Body::None),
            ..Frame::default()
        };
        let client = self.gateway.connect().await?;
        let request = pb::PublishRequest {
            frame: Some(frame),
            member_id: self.member,
        };
        let accepted = client
            .sessions()
            .publish(request)
            .await
            .map_err(Error::from)?
            .into_inner();
        let id = if accepted.id.is_empty() { "-" } else { &accepted.id };
        let again = if accepted.duplicate { " duplicate" } else { "" };
        output::line(&format!("{id} {}{again}", accepted.seq))
    }
}
