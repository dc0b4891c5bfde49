//! The one table of what every frame and every call needs. Who wants to do something is checked against its row, on either
//! face; docs/PERMISSIONS.md is generated from it.

use super::grants::{Grants, Permission};
use crate::error::{Reason, Refusal};

/// What a deed needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing beyond having said who it is.
    Nothing,
    /// Not even that.
    NotEvenAName,
    /// The permission, in the session.
    In(Permission),
    /// `read` in the session, and the role among `roles`, unless it is `client`.
    Role,
    /// `request` in the session, and the role among `ask`, if that says anything.
    Asking,
    /// `cancel` in the session; `cancel_own` for what the same subject has asked.
    Cancelling,
    /// The role among `serve`; requests come from that grant's sessions.
    Serving,
    /// To hold the request that is answered.
    Holding,
    /// What the frame within needs.
    AsFrame,
    /// `admin`, in whichever grant.
    Admin,
}

macro_rules! deeds {
    ($($variant:ident $name:literal $need:expr, $text:literal;)*) => {
        /// Something that a peer may want to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Deed { $(#[doc = $text] $variant,)* }

        impl Deed {
            /// All of them, in the order of the manual.
            pub const ALL: &'static [Deed] = &[$(Deed::$variant,)*];

            /// What it needs.
            pub const fn need(self) -> Need {
                match self { $(Deed::$variant => $need,)* }
            }

            /// Its frame or call.
            pub const fn name(self) -> &'static str {
                match self { $(Deed::$variant => $name,)* }
            }

            const fn text(self) -> &'static str {
                match self { $(Deed::$variant => $text,)* }
            }
        }
    };
}

deeds! {
    Hello "Hello" Need::NotEvenAName, "Say who it is, or say it anew.";
    Ping "Ping, Pong" Need::NotEvenAName, "Ask for life, or show it.";
    Join "Join" Need::Role, "Become a member of a session; also to resume.";
    JoinPresence "Join with `presence`" Need::In(Permission::Presence), "Be told who is there, who comes and who goes. Without it, `Joined` lists nobody.";
    Leave "Leave" Need::Nothing, "Be a member no more.";
    Send "a frame to the session, to a member, or to the members of a role" Need::In(Permission::Send), "Say something, logged or ephemeral.";
    Request "a frame to a role" Need::Asking, "Ask a worker of the role.";
    Replace "a frame to a role that replaces others (option `concurrency`)" Need::Cancelling, "Ask, and end what was asked before of the role.";
    Open "Join, or a frame, that brings its session into being" Need::In(Permission::Create), "Make a session by using it.";
    Serve "Serve" Need::Serving, "Be a worker.";
    Reply "a frame with `reply_to`" Need::Holding, "Answer a request, as its worker.";
    Cancel "Cancel" Need::Cancelling, "End a request.";
    CallCreate "Sessions.Create" Need::In(Permission::Create), "Make a session.";
    CallGet "Sessions.Get" Need::In(Permission::Read), "See what there is to say of a session.";
    CallList "Sessions.List" Need::In(Permission::Read), "See which sessions there are: those that may be read.";
    CallUpdate "Sessions.Update" Need::In(Permission::Manage), "Change a session's metadata, labels and retention.";
    CallClose "Sessions.Close" Need::In(Permission::Manage), "Close a session.";
    CallDelete "Sessions.Delete" Need::In(Permission::Manage), "Delete a session.";
    CallPublish "Sessions.Publish" Need::AsFrame, "Send one frame.";
    CallListFrames "Sessions.ListFrames" Need::In(Permission::Read), "Read a session's log.";
    CallWatch "Sessions.Watch" Need::In(Permission::Read), "Follow a session; with `presence` as for Join.";
    CallCancel "Sessions.Cancel" Need::Cancelling, "End a request.";
    CallWhy "Sessions.Why" Need::In(Permission::Read), "Ask what a request waits for.";
    ListWorkers "Admin.ListWorkers" Need::Admin, "See the workers.";
    DrainWorker "Admin.DrainWorker" Need::Admin, "Have a worker finish what it has.";
    Stats "Admin.Stats" Need::Admin, "See what was counted.";
    Revoke "Admin.Revoke" Need::Admin, "Take a subject's or a token's access back.";
    ListRevocations "Admin.ListRevocations" Need::Admin, "See what was taken back.";
    Backup "Admin.Backup" Need::Admin, "Have a copy of everything.";
    Export "Admin.Export" Need::Admin, "Read all sessions, whoever they are for.";
    Import "Admin.Import" Need::Admin, "Bring sessions from elsewhere.";
}

/// Where a deed is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The session, where it is in one.
    pub session: &'a str,
    /// The role that is joined as, asked or served.
    pub role: &'a str,
}

/// Whose requests may be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Anybody's.
    Any,
    /// Those of the same subject.
    Own,
    /// Nobody's.
    None,
}

impl Grants {
    /// Whether the deed may be done there; if not, what it takes.
    pub fn check(&self, deed: Deed, place: Place<'_>) -> Result<(), Refusal> {
        let Place { session, role } = place;
        let allowed = match deed.need() {
            // What a reply needs is checked where the request is; what a call with a frame needs, when that is looked at.
            Need::Nothing | Need::NotEvenAName | Need::Holding | Need::AsFrame => true,
            Need::In(permission) => self.allow(permission, session),
            Need::Role => self.allow_role(session, role),
            Need::Asking => self.allow_asking(session, role),
            Need::Cancelling => self.reach(deed, session) != Reach::None,
            Need::Serving => self.served(role).is_some(),
            Need::Admin => self.allow_admin(),
        };
        match allowed {
            true => Ok(()),
            false => Err(self.denied(deed, place)),
        }
    }

    /// Whose requests the deed may end in the session.
    pub fn reach(&self, deed: Deed, session: &str) -> Reach {
        if deed.need() != Need::Cancelling {
            let may = self.check(deed, Place { session, role: "" });
            return may.map_or(Reach::None, |()| Reach::Any);
        }
        if self.allow(Permission::Cancel, session) {
            Reach::Any
        } else if self.allow(Permission::CancelOwn, session) {
            Reach::Own
        } else {
            Reach::None
        }
    }

    fn denied(&self, deed: Deed, Place { session, role }: Place<'_>) -> Refusal {
        let need = match deed.need() {
            Need::In(permission) => permission.name(),
            Need::Role if self.allow(Permission::Read, session) => "roles",
            Need::Role => Permission::Read.name(),
            Need::Asking if self.allow(Permission::Request, session) => "ask",
            Need::Asking => Permission::Request.name(),
            Need::Cancelling => Permission::CancelOwn.name(),
            Need::Serving => Permission::Serve.name(),
            Need::Admin | Need::Nothing | Need::NotEvenAName | Need::Holding | Need::AsFrame => {
                Permission::Admin.name()
            }
        };
        let mut text = format!("{} needs `{need}`", deed.name());
        if !session.is_empty() {
            text += &format!(" in session {session}");
        }
        if !role.is_empty() {
            text += &format!(" for the role {role}");
        }
        text += ", which no grant gives; have one made that does";
        if let Some(void) = self.void() {
            text += &format!(
                " ({void:?} gives nothing to this subject, whose name has the character that ends it there: what is its own could not be told from others')"
            );
        }
        let refusal = Refusal::new(Reason::PermissionDenied, text).with("need", need);
        match session.is_empty() {
            true => refusal,
            false => refusal.with("session_id", session),
        }
    }
}

impl Need {
    fn text(self) -> String {
        match self {
            Need::Nothing => "an identity".to_owned(),
            Need::NotEvenAName => "nothing".to_owned(),
            Need::In(permission) => format!("`{permission}`"),
            Need::Role => "`read`, and the role among `roles` unless it is `client`".to_owned(),
            Need::Asking => "`request`, and the role among `ask` if that says anything".to_owned(),
            Need::Cancelling => "`cancel`, or `cancel_own` for what the same subject has asked".to_owned(),
            Need::Serving => "the role among `serve`; requests come from that grant's sessions".to_owned(),
            Need::Holding => "to hold the request".to_owned(),
            Need::AsFrame => "what the frame needs".to_owned(),
            Need::Admin => "`admin`".to_owned(),
        }
    }
}

/// docs/PERMISSIONS.md.
pub fn markdown() -> String {
    let rows = Deed::ALL
        .iter()
        .map(|deed| format!("| {} | {} | {} |\n", deed.name(), deed.need().text(), deed.text()));
    format!(
        "<!-- Made from the table in src/auth/deeds.rs. Change it there, then: UPDATE_DOCS=1 cargo test --lib manual -->\n\n\
         # Permissions\n\n\
         What every frame and every call needs, on either face. What no grant gives is denied (`PERMISSION_DENIED`; `details.need` is the\n\
         permission, `details.session_id` the session); [AUTH.md](AUTH.md) says where grants come from. A gateway that authenticates nobody allows\n\
         everybody everything. Health needs nothing, server reflection an identity.\n\n\
         | frame or call | needs, in its session | to |\n|---|---|---|\n{}",
        rows.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    #[test]
    fn every_call_has_its_row() {
        let set = prost_types::FileDescriptorSet::decode(crate::frame::DESCRIPTORS).unwrap();
        let ours = set.file.iter().filter(|file| file.package() == "twinspan.v1");
        let calls: BTreeSet<String> = ours
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                service
                    .method
                    .iter()
                    .map(|method| format!("{}.{}", service.name(), method.name()))
            })
            .filter(|name| name != "Gateway.Attach")
            .collect();
        let rows = Deed::ALL
            .iter()
            .map(|deed| deed.name())
            .filter(|name| name.contains('.'));
        assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), calls);
    }

    #[test]
    fn a_refusal_says_what_it_takes() {
        let place = Place {
            session: "s",
            role: "brain",
        };
        for deed in Deed::ALL {
            let free = matches!(
                deed.need(),
                Need::Nothing | Need::NotEvenAName | Need::Holding | Need::AsFrame
            );
            let checked = Grants::none().check(*deed, place);
            assert_eq!(checked.is_ok(), free, "{deed:?}");
            assert!(Grants::all().check(*deed, place).is_ok());
            if let Err(refusal) = checked {
                assert!(
                    refusal.message.contains(&format!("needs `{}`", refusal.details[0].1)),
                    "{refusal}"
                );
            }
        }
    }
}
