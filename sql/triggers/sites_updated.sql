-- Records which columns of a site a statement changed.
-- needs: note_site_change
create or replace trigger sites_updated after update on webhooks.sites
  for each row when (old.* is distinct from new.*) execute function webhooks.note_site_change();
