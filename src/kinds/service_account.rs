//! ServiceAccounts.

use super::{
    Kind, Strategy, Subresource,
    columns::{self, AGE, NAME},
    meta, names,
    registry::row,
};

pub const SERVICE_ACCOUNT: Kind = Kind {
    short_names: &["sa"],
    subresources: &[Subresource::Other("token")],
    columns: &[NAME, AGE],
    strategy: Strategy {
        validate: |object| meta::check(object, true, names::dns_subdomain, |_, _| {}),
        cells: |account, now| vec![columns::name(account), columns::age(account, now).into()],
        ..Strategy::PLAIN
    },
    ..row(
        "",
        "v1",
        "ServiceAccount",
        "serviceaccounts",
        "serviceaccount",
        "io.k8s.api.core.v1.ServiceAccount",
    )
};
