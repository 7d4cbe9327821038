//! ServiceAccounts.

use super::{
    Kind, Strategy, Subresource,
    columns::{self, AGE, NAME, integer},
    meta, names,
    registry::row,
};

pub const SERVICE_ACCOUNT: Kind = Kind {
    short_names: &["sa"],
    subresources: &[Subresource::Other("token")],
    columns: &[NAME, integer("Secrets"), AGE],
    strategy: Strategy {
        validate: |object| meta::check(object, true, names::dns_subdomain, |_, _| {}),
        cells: |object, now| {
            let secrets = object["secrets"].as_array().map_or(0, Vec::len);
            vec![columns::name(object), secrets.into(), columns::age(object, now).into()]
        },
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
